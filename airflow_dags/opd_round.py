"""The tasks of a round: plan, rollout by workers, grade, score by teachers × workers, train, eval.

A round without rewards skips grade, and is trained all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk import task

from opd_command import Call
from opd_outcome import CHECKPOINTS
from opd_settings import Settings
from opd_task import opd_task


@dataclass(frozen=True)
class Round:
    """The tasks of a round that others are chained to."""

    plan: Any
    train: Any
    evaluate: Any


@task
def teachers(plan: str, ti: Any = None) -> Any:
    """Return the calls of score in a round's plan: the workers of each teacher."""
    return ti.xcom_pull(task_ids=plan, key="result")["score"]


def round_tasks(
    group: str,
    options: Mapping[str, Any],
    of_run: Mapping[str, str],
    of_plan: Mapping[str, str],
    *,
    settings: Settings,
) -> Round:
    """Make the tasks of a round inside the task group that is open; return those to chain.

    Args:
        group: name of that group.
        options: options of each call.
        of_run: options of each call that are Params.
        of_plan: further ones of the plan.
        settings: where tasks run.
    """

    def stage(name: str, **more: Any) -> Any:
        call = Call((name,), options, of_run, needs=(f"{group}.plan", name))
        return opd_task(name, call, kind=name, settings=settings, **more)

    call = Call(("plan",), options, {**of_run, **of_plan}, returns="rollout")
    plan = opd_task("plan", call, kind="plan", settings=settings, trigger_rule="none_failed")
    scored_by = teachers(f"{group}.plan")
    rollout, score = stage("rollout", each=plan.output), stage("score", each=scored_by)
    train = stage("train", outlets=[CHECKPOINTS], trigger_rule="none_failed_min_one_success")
    grade, evaluate = stage("grade"), stage("eval")
    plan >> scored_by
    rollout >> [grade, score] >> train >> evaluate
    return Round(plan, train, evaluate)
