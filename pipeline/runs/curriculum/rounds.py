"""What a round has of its own by `[schedule]`: computed once, then as its plan says.

Promises: a round that is planned keeps its values, whatever happens to records of other rounds.
"""

from typing import Any

from pipeline.runs.run import Run
from schemas.config.loss import LossConfig
from schemas.config.rounds.schedule import on_line
from schemas.config.run import RunConfig
from schemas.records.schedule import PromptSchedule, RoundSchedule


def round_schedule(run: Run, round_index: int) -> RoundSchedule | None:
    """Return what a round has of its own, as planned or as it will be; None without a schedule."""
    plan = run.plan(round_index)
    return announced(run.config, round_index) if plan is None else plan.schedule


def announced(config: RunConfig, round_index: int) -> RoundSchedule | None:
    """Return what a round has of its own by the configuration; None without a schedule."""
    section = config.schedule
    if section is None:
        return None
    prompts = None
    if section.prompts is not None:
        given = section.prompts
        prompts = PromptSchedule(
            hardness=on_line(given.hardness, round_index),
            floor=given.floor,
            hard_teacher=given.hard_teacher,
            hard_share=None if given.hard_teacher is None else given.hard_share,
        )
    return RoundSchedule(
        loss=section.loss_at(round_index),
        teacher=section.teacher_at(round_index),
        prompts=prompts,
    )


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
    if schedule.prompts is not None:
        values["prompts.hardness"] = schedule.prompts.hardness
    return values if schedule.teacher is None else {"teacher": schedule.teacher, **values}
