"""What a round has of its own by `[schedule]`: computed once, then as its plan says.

Promises: a round that is planned keeps its values, whatever happens to records of other rounds.
"""

from typing import Any

from pipeline.runs.run import Run
from schemas.config.loss import LossConfig
from schemas.records.schedule import RoundSchedule


def round_schedule(run: Run, round_index: int) -> RoundSchedule | None:
    """Return what a round has of its own, as planned or as it will be; None without a schedule."""
    plan = run.plan(round_index)
    if plan is not None:
        return plan.schedule
    section = run.config.schedule
    if section is None:
        return None
    return RoundSchedule(loss=section.loss_at(round_index), teacher=section.teacher_at(round_index))


def round_objective(run: Run, round_index: int) -> LossConfig:
    """Return the objective of a round."""
    schedule = round_schedule(run, round_index)
    return run.config.objective_with({} if schedule is None else schedule.loss)


def round_teacher(run: Run, schedule: RoundSchedule | None) -> str:
    """Return who scores the prompts of a round that name no teacher."""
    named = None if schedule is None else schedule.teacher
    return named or run.config.default_teacher


def shown(schedule: RoundSchedule | None) -> dict[str, Any]:
    """Return what a round has of its own, by the keys of the configuration."""
    if schedule is None:
        return {}
    values: dict[str, Any] = {f"loss.{name}": value for name, value in schedule.loss.items()}
    return values if schedule.teacher is None else {"teacher": schedule.teacher, **values}
