"""The student as it came: imported once into the run as checkpoint 0."""

import tempfile
from pathlib import Path

from pipeline.checkpoint import export_folder, publish_checkpoint
from pipeline.models import find_model, load_model, model_identity
from pipeline.run import Run
from pipeline.tokenizer import load_tokenizer
from schemas.errors import ConfigError
from schemas.manifest import CheckpointManifest


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
    section = run.config.student
    source = find_model(run.config, section, "student")
    tokenizer = load_tokenizer(
        source.location,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )
    model = load_model(source, dtype=section.dtype, device="cpu")
    with tempfile.TemporaryDirectory(prefix="opd-student-") as name:
        folder = Path(name)
        export_folder(model, tokenizer, model.state_dict(), folder)
        return publish_checkpoint(run, 0, folder, origin=model_identity(source), state=None)
