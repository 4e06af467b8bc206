"""What an evaluation grades: the student of a round, the student as it came, a teacher."""

from dataclasses import dataclass

from pipeline.runs.run import Run
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
