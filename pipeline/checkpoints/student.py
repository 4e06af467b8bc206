"""The initial student: imported once into the run as checkpoint 0.

With `train.lora`, that is an adapter, and the model that it belongs to is kept once beside it.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints.carried import carry_tokenizer, check_carried
from pipeline.checkpoints.faithful import require_same, require_same_adapter
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.publishing import publish_checkpoint
from pipeline.models.adapters import adapter_settings
from pipeline.models.loading import load_model
from pipeline.models.lora import (
    check_continued,
    check_targets,
    new_adapter,
    read_adapter,
    write_adapter,
)
from pipeline.models.source import ModelSource, find_model, load_settings, model_identity
from pipeline.models.tokenizer import check_fits, model_tokenizer
from pipeline.runs.run import Run, pin_run
from pipeline.store.disk.scratch import scratch
from schemas.config.train import LoraSection
from schemas.errors import ConfigError
from schemas.randomness import derived_seed
from schemas.records.training import CheckpointManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def policy_of_round(run: Run, round_index: int) -> CheckpointManifest:
    """Return the checkpoint that samples in a round; round 0 imports the student first.

    Raises:
        ConfigError: the round before has not been trained, or the student cannot be read.
    """
    found = run.checkpoint(round_index)
    if found is not None:
        return found
    if round_index == 0:
        return _import_student(run)
    raise ConfigError(
        f"round {round_index} needs checkpoint {round_index:04d}, which round {round_index - 1} "
        f"has not trained yet: run `opd train --round {round_index - 1}` first, or `opd run` for "
        "everything in order"
    )


def _import_student(run: Run) -> CheckpointManifest:
    section, lora = run.config.student, run.config.train.lora
    source = find_model(run.place, section, "student")
    settings = load_settings(source)  # first, for the tokenizer would be blamed for an odd model
    check_fits(model_tokenizer(source), settings, "student.model")
    whole = source if lora is None else source.whole
    model, origin = load_model(whole, dtype=section.dtype, device="cpu"), model_identity(source)
    if lora is not None and source.base is None:
        check_targets(model, lora)
    elif lora is not None:
        check_continued(Path(source.location), lora, model)
    check_carried(source)
    pin_run(run)  # not before the student is known to be one
    if lora is None:
        return _publish(run, 0, model, source=source, origin=origin)
    below = origin if source.base is None else origin["base"]
    base = _publish(run, None, model, source=source.whole, origin=below)
    with scratch("student") as folder:
        settings, weights = _first_adapter(run, lora, source, model)
        carry_tokenizer(source, folder)
        write_adapter(folder, settings, weights)
        require_same_adapter(folder, settings, weights)
        return publish_checkpoint(run, 0, folder, origin=origin, state=None, base=base)


def _publish(
    run: Run,
    index: int | None,
    model: "PreTrainedModel",
    *,
    source: ModelSource,
    origin: dict[str, Any],
) -> CheckpointManifest:
    """Publish a model, after what was written has given its logits."""
    with scratch("student") as folder:
        export_folder(model, model.state_dict(), source=source, folder=folder)
        made = replace(source, location=str(folder), revision=None, base=None)
        require_same(model, made, source, allowed=run.config.train.verify_tolerance)
        return publish_checkpoint(run, index, folder, origin=origin, state=None)


def _first_adapter(
    run: Run, lora: LoraSection, source: ModelSource, model: "PreTrainedModel"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and weights of the adapter that training starts from."""
    base = {
        "base_model_name_or_path": source.whole.location,
        "revision": source.whole.revision,
    }
    if source.base is None:
        seed = derived_seed("lora", run.config.run.seed)
        return new_adapter(model, lora, seed=seed, base=base)
    folder = Path(source.location)
    return adapter_settings(folder) | base, read_adapter(folder)
