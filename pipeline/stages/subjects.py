"""Who samples: the student of a round, the student as it came, a teacher."""

from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.vllm.slot import Weights
from pipeline.models.source import find_model, model_identity
from pipeline.models.tokenizer import stored_tokenizer
from pipeline.models.tokenizeridentity import check_same_tokenizer
from pipeline.runs.run import Run
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint
from schemas.keys import STUDENT, baseline_folder, teacher_label


@dataclass(frozen=True)
class Subject:
    """A model to grade."""

    label: str
    """Of the student, or of a teacher."""
    round_index: int | None
    """Round that trained it; None for the baseline."""
    folder: str
    """Key prefix of the evaluation."""
    dtype: str
    teacher: str | None = None
    """Name of the teacher; None for the student."""


def round_subject(run: Run, round_index: int) -> Subject:
    """Return the student that a round trained."""
    folder = run.stage_folder(round_index, "eval")
    return Subject(STUDENT, round_index, folder, run.config.student.dtype)


def baseline_subjects(run: Run) -> list[Subject]:
    """Return the student as it came and, where the configuration asks for them, the teachers."""
    subjects = [
        Subject(STUDENT, None, baseline_folder(run.name, STUDENT), run.config.student.dtype)
    ]
    for name, section in run.config.teachers.items():
        if run.config.eval is not None and run.config.eval.teachers:
            label = teacher_label(name)
            folder = baseline_folder(run.name, label)
            subjects.append(Subject(label, None, folder, section.dtype, teacher=name))
    return subjects


def check_teacher(run: Run, name: str) -> None:
    """Make sure that a run has a teacher.

    Raises:
        ConfigError: it has none of this name.
    """
    if name not in run.config.teachers:
        known = ", ".join(run.config.teachers)
        raise ConfigError(f"there is no teacher {name!r}; known: {known}")


def teacher_weights(run: Run, name: str) -> Weights:
    """Return a teacher as the weights that a stage samples from."""
    source = find_model(run.place, run.config.teachers[name], f"teachers.{name}")
    version = fingerprint(model_identity(source))
    return Weights(source, version, run.config.teachers[name].dtype)


def student_tokenizer(run: Run, name: str, tokenizer: Any) -> Any:
    """Return the student's tokenizer, which made the ids of the prompts.

    Args:
        run: the run.
        name: of the teacher that samples.
        tokenizer: the teacher's.

    Raises:
        IdentityError: the teacher would read other text.
    """
    with opened_model(run, policy_of_round(run, 0), weights=False) as policy:
        student = stored_tokenizer(policy)
    mode = run.config.teachers[name].tokenizer_check
    check_same_tokenizer(student, tokenizer, teacher_name=name, mode=mode)
    return student
