"""What a round has of its own, as its plan fixes it."""

from schemas.forms import FileName, Real, Words
from schemas.records.record import Record
from schemas.records.shards import Shard


class PromptSchedule(Record):
    """How the prompts of a round are drawn."""

    LATER = frozenset({"hard_teacher", "hard_share"})
    hardness: Real
    floor: Real
    difficulty: Shard | None = None
    """Difficulty of each prompt of the run's table when the round was planned; None where nothing
    was measured before it, so that prompts are drawn in their random order."""
    hard_teacher: FileName | None = None
    """Who scores the hardest prompts, where they name nobody; None for the round's teacher."""
    hard_share: Real | None = None
    """Share of the known prompts that counts as the hardest; None without such a teacher."""


class RoundSchedule(Record):
    """What a round has of its own."""

    LATER = frozenset({"teacher", "prompts"})
    loss: dict[Words, Real]
    """Values of `[loss]` in the place of the configuration's."""
    teacher: FileName | None = None
    """Who scores prompts that name no teacher; None for the run's default."""
    prompts: PromptSchedule | None = None
    """How prompts are drawn by difficulty; None where they are drawn in a random order."""
