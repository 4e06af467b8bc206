"""What a round has of its own, as its plan fixes it."""

from schemas.forms import FileName, Real, Words
from schemas.records.record import Record


class RoundSchedule(Record):
    """What a round has of its own."""

    LATER = frozenset({"teacher"})
    loss: dict[Words, Real]
    """Values of `[loss]` in the place of the configuration's."""
    teacher: FileName | None = None
    """Who scores prompts that name no teacher; None for the run's default."""
