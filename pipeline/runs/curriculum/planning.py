"""Which prompts a round draws, and what its plan must remember for that."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.runs.curriculum.difficulty import carried_on, difficulty_shard, read_difficulty
from pipeline.runs.curriculum.draw import draw_by_difficulty, hardest
from pipeline.runs.curriculum.rounds import announced
from pipeline.runs.plan import Rows, draw_prompts
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from pipeline.store.sweeps import settle
from schemas.records.schedule import RoundSchedule


@dataclass(frozen=True, eq=False)
class Draw:
    """The prompts of a round."""

    rows: Rows
    """Row numbers in the prompt table."""
    epochs: Rows
    """Pass over the table in which each was drawn; by difficulty, the number of its copy."""
    schedule: RoundSchedule | None
    """What the plan says of the round; None where nothing changes from round to round."""
    stored: tuple[str, bytes] | None = None
    """Key and bytes of the difficulties that the plan names, where they are new."""
    hard_R: NDArray[np.bool_] | None = None
    """Which prompts of the table go to the schedule's teacher of the hardest; None for none."""

    def routed(self, prompts: pa.Table) -> pa.Table:
        """Return the prompt table with the teacher of the hardest where a prompt names none."""
        told = None if self.schedule is None else self.schedule.prompts
        if told is None or told.hard_teacher is None or self.hard_R is None:
            return prompts
        named = prompts.column("teacher")
        hard = pc.and_(pc.is_null(named), pa.array(self.hard_R))
        teacher = pc.if_else(hard, told.hard_teacher, named)
        return prompts.set_column(
            prompts.column_names.index("teacher"), prompts.schema.field("teacher"), teacher
        )

    def keep(self, storage: Storage) -> None:
        """Store what the plan names; before and after the plan, for a clean-up may come between."""
        if self.stored is not None:
            key, data = self.stored
            settle(storage, [key], lambda gone: storage.put(gone, data))


def draw_round(run: Run, round_index: int, prompt_ids: pa.ChunkedArray) -> Draw:
    """Return the prompts of a round: as its plan says, where there is one.

    Args:
        run: the run.
        round_index: the round.
        prompt_ids: of the run's table.

    Raises:
        ConfigError: the round before was not measured.
        DataError: what it stored, or what the plan names, is missing or damaged.
    """
    plan = run.plan(round_index)
    schedule = announced(run.config, round_index) if plan is None else plan.schedule
    if schedule is None or schedule.prompts is None:
        return Draw(*_in_order(run, round_index, len(prompt_ids)), schedule)
    known, stored, prompts = None, None, schedule.prompts
    if plan is None:
        known = carried_on(run, round_index, prompt_ids)
    elif prompts.difficulty is not None:
        known = read_difficulty(run.storage, prompts.difficulty)
    if known is None:
        return Draw(*_in_order(run, round_index, len(prompt_ids)), schedule)
    if plan is None:
        shard, data = difficulty_shard(known)
        stored = shard.key, data
        prompts = prompts.model_copy(update={"difficulty": shard})
        schedule = schedule.model_copy(update={"prompts": prompts})
    drawn = draw_by_difficulty(
        known,
        per_round=run.config.rollout.prompts_per_round,
        hardness=prompts.hardness,
        floor=prompts.floor,
        round_index=round_index,
        seed=run.config.run.seed,
    )
    hard_R = None if prompts.hard_share is None else hardest(known, prompts.hard_share)
    return Draw(*drawn, schedule, stored, hard_R)


def _in_order(run: Run, round_index: int, rows: int) -> tuple[Rows, Rows]:
    """Return prompts in their random order, as they are drawn without a measurement."""
    per_round = run.config.rollout.prompts_per_round
    seed = run.config.run.seed
    return draw_prompts(rows, per_round=per_round, round_index=round_index, seed=seed)
