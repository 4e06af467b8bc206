"""The trained student: exported, reloaded, compared with the learner, then published."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.checkpoints.carried import carry_tokenizer
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.probe import make_probe, write_probe
from pipeline.checkpoints.publishing import holds_weights, publish_checkpoint
from pipeline.engines.hf.exported import keep_exported
from pipeline.engines.kept import keeps
from pipeline.learner.feed.layout import batch_inputs
from pipeline.learner.inputs import TrainInputs
from pipeline.learner.learner import Learner, token_logprobs
from pipeline.learner.metrics import TOO_HIGH
from pipeline.learner.ranks import from_main
from pipeline.learner.sequences import Batch
from pipeline.models.adapters import adapter_settings
from pipeline.models.loading import load_model
from pipeline.models.lora import write_adapter
from pipeline.models.source import ModelSource
from pipeline.runs.run import Run
from pipeline.scores.tolerances import export_limit
from pipeline.store.disk.scratch import scratch
from schemas.errors import ConfigError, DataError
from schemas.records.training import StateManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def publish_student(
    run: Run,
    inputs: TrainInputs,
    learner: Learner,
    *,
    source: ModelSource,
    probe: Batch,
    state: StateManifest,
    state_key: str,
) -> None:
    """Commit the learner's student as the next checkpoint; every process must call.

    Args:
        run: the run.
        inputs: what was trained on.
        learner: holds the student.
        source: the checkpoint that training started from, for its base and for every
            file but weights.
        probe: sequences whose log-probabilities are compared.
        state: the learner's final state.
        state_key: key of that state's record.

    Raises:
        DataError: the reloaded checkpoint does not give the learner's log-probabilities.
        ConfigError: these are no numbers.
    """
    index = inputs.round_index + 1
    weights, expected = learner.full_state(), learner.probe(probe)

    def publish() -> None:
        if run.checkpoint(index) is not None or weights is None:
            return
        if not bool(expected.isfinite().all()):
            raise ConfigError(f"the trained student's log-probabilities are no numbers: {TOO_HIGH}")
        with scratch("export") as folder:
            _export(run, learner, weights, source, folder)
            made = replace(source, location=str(folder))
            model, found_T = _check_export(run, made, probe, expected.cpu())
            lengths = probe.prompt_tokens_B.tolist()
            write_probe(folder, make_probe(probe.id_rows(), lengths, found_T.numpy()))
            manifest = publish_checkpoint(
                run,
                index,
                folder,
                origin={"run": run.name, "round": index - 1, "step": state.step},
                state=state_key,
                base=None if source.base is None else run.checkpoint(None),
            )
            if source.base is None and keeps() and holds_weights(manifest, folder):
                version, dtype = manifest.policy_version, run.config.student.dtype
                keep_exported(model, version=version, dtype=dtype)

    from_main(publish)


def _export(
    run: Run, learner: Learner, weights: dict[str, Tensor], source: ModelSource, folder: Path
) -> None:
    """Write what was trained: a whole model in the student's number format, or its adapter."""
    if source.base is not None:
        carry_tokenizer(source, folder)
        write_adapter(folder, adapter_settings(Path(source.location)), weights)
        return
    dtype = getattr(torch, run.config.student.dtype)
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
    export_folder(learner.student, cast, source=source, folder=folder)


def _check_export(
    run: Run, source: ModelSource, probe: Batch, expected_T: Tensor
) -> tuple["PreTrainedModel", Tensor]:
    """Return the checkpoint and its log-probabilities of a probe, once they are the learner's."""
    dtype = run.config.student.dtype
    model = load_model(source, dtype=dtype, device="cpu")
    ids_BT, mask_BT, states_2T = batch_inputs(probe, "cpu")
    with torch.inference_mode():
        logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        found_T = token_logprobs(logits, ids_BT, states_2T)
    difference_T = (found_T - expected_T).abs()
    exact = dtype == "float32" and run.config.train.dtype == "float32"
    found = float(difference_T.max() if exact else difference_T.mean())
    allowed = export_limit(exact=exact, configured=run.config.train.verify_tolerance)
    if not found <= allowed:
        raise DataError(
            f"the exported checkpoint gives log-probabilities {found:.3g} nats away from the "
            f"learner's, at most {allowed:.3g} is expected; nothing was committed. The "
            "architecture is not saved faithfully by transformers: report it with its name"
        )
    return model, found_T
