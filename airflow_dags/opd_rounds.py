"""The DAG of rounds: plan, rollout, grade, score, train, eval and gate, spread over workers."""

import sys
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task_group

sys.path.append(str(Path(__file__).parent))  # the modules beside this file, however it is loaded

from opd_command import Call
from opd_params import NAME, OF_DAG, OF_RUN, OVERRIDES, WORKERS, config_param
from opd_round import round_tasks
from opd_settings import load_settings
from opd_task import opd_task

SETTINGS = load_settings()

DOC = """
### Rounds of on-policy distillation

Each round: **plan** says what is due, **rollout** lets the student sample (`workers` tasks),
**grade** gives the responses their rewards where the TOML has a `[reward]`,
**score** lets each teacher score exactly those tokens (`workers` tasks for each teacher), **train**
makes the next checkpoint, **eval** grades it, **gate** decides: go on, stop at the target, or fail.

All state is in the root's manifests. Any task may be cleared, retried, killed or run twice: it does
what is not committed yet, and nothing else. What is done already takes seconds.

- `config` is the run's TOML, as a path that the workers see or as `s3://…`.
- Rounds from `rounds` on, before `first_round`, or after the gate's stop are skipped; their plan
  says why.
- `teachers` scores with some teachers only; the round ends there unless they are all.
- `dry_run` shows the plan of each round in the log of its task `plan` and starts nothing.
- Exit codes 6 (storage) and 7 (memory), and interruptions, are retried; 2, 3, 4 and others fail at
  once with the message of `opd` in the log.
"""

PARAMS = {
    "config": config_param(SETTINGS),
    "rounds": Param(
        SETTINGS.rounds,
        type="integer",
        minimum=1,
        maximum=SETTINGS.rounds,
        title="Rounds",
        description="Rounds to reach in total.",
    ),
    "first_round": Param(
        0,
        type="integer",
        minimum=0,
        maximum=SETTINGS.rounds - 1,
        title="First round",
        description="Rounds before it are skipped, which saves time where they are done.",
    ),
    "workers": WORKERS,
    "teachers": Param(
        [],
        type="array",
        items={"type": "string", "pattern": NAME},
        title="Teachers",
        description="Score with these only; none means all.",
    ),
    "overrides": OVERRIDES,
    "dry_run": Param(
        False, type="boolean", title="Dry run", description="Show the plans; start nothing."
    ),
}
OF_PLAN = {
    "rounds": "rounds",
    "from-round": "first_round",
    "workers": "workers",
    "teacher": "teachers",
    "dry-run": "dry_run",
}


@task_group
def one_round(index: int) -> Any:
    """Return the first and the last task of a round."""
    here, group = {"round": index}, f"round_{index}"
    tasks = round_tasks(group, here, OF_RUN, OF_PLAN, settings=SETTINGS)
    gate = opd_task(
        "gate",
        Call(("gate",), here, OF_RUN),
        kind="plan",
        settings=SETTINGS,
        trigger_rule="none_failed_min_one_success",
    )
    tasks.evaluate >> gate
    tasks.train >> gate
    if index == 0:
        call = Call(("eval",), {"baseline": True}, OF_RUN, needs=(f"{group}.plan", "baseline"))
        baseline = opd_task("baseline", call, kind="eval", settings=SETTINGS)
        tasks.plan >> baseline >> tasks.evaluate
    return tasks.plan, gate


@dag(
    dag_id="opd_rounds",
    dag_display_name="opd: rounds",
    description="On-policy distillation in rounds: rollout, grade, score, train, eval",
    doc_md=DOC,
    schedule=None,
    params=PARAMS,
    **OF_DAG,
)
def opd_rounds() -> None:
    """Chain the rounds."""
    last = None
    for index in range(SETTINGS.rounds):
        plan, gate = one_round.override(group_id=f"round_{index}")(index)
        if last is not None:
            last >> plan
        last = gate


opd_rounds()
