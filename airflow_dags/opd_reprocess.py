"""The DAG of cached scores: make new ones from old, and see what a student learns from them."""

import sys
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task, task_group

sys.path.append(str(Path(__file__).parent))  # the modules beside this file, however it is loaded

from opd_command import Call
from opd_params import NAME, OF_DAG, OF_RUN, OVERRIDES, WORKERS, config_param
from opd_round import round_tasks
from opd_settings import load_settings
from opd_task import opd_task

SETTINGS = load_settings()

DOC = """
### Cached scores, reprocessed without the teacher

1. **invalid** verifies the rounds in `invalid_rounds` and scores anew what is damaged or of another
   scorer. Only this needs the teacher; with no rounds it is skipped.
2. **reprocess** makes the scorer `name` from the scorers `sources`: another codec, fewer ids, fewer
   signals, or with several sources a mixture by `weights`. With no sources it is skipped.
3. **branch** trains round 0 of a run called `branch` on the new scores (in the place of `teacher`),
   grades it and, in **compare**, shows it beside round 0 of the configuration's own run. Without
   `branch` it is skipped. The samples of round 0 are those of the run, by the same seed and
   student; where the engine cannot repeat them, the branch's score task says so and fails.

The old scores stay. All of it may be cleared, retried and run twice, as the rounds may.
"""

PARAMS = {
    "config": config_param(SETTINGS),
    "sources": Param(
        [],
        type="array",
        items={"type": "string", "pattern": NAME},
        title="Sources",
        description="Keys or names of the scorers to read; several make a mixture.",
    ),
    "name": Param(
        "reprocessed", type="string", pattern=NAME, title="Name", description="Of the new scorer."
    ),
    "weights": Param(
        [],
        type="array",
        items={"type": "number", "exclusiveMinimum": 0},
        title="Weights",
        description="Of each source in a mixture, in order.",
    ),
    "codec": Param(
        None, type=["null", "string"], enum=[None, "typed-v1", "packed-v1"], title="Codec"
    ),
    "k": Param(
        None, type=["null", "integer"], minimum=1, title="k", description="Top-k ids to keep."
    ),
    "top_p": Param(
        None,
        type=["null", "number"],
        exclusiveMinimum=0,
        maximum=1,
        title="top_p",
        description="Mass at which a position's top-k ends.",
    ),
    "min_k": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="min_k",
        description="Fewest ids with top_p.",
    ),
    "one_tail": Param(False, type="boolean", title="Join the tail's buckets"),
    "drop_candidates": Param(False, type="boolean", title="Drop the student's own ids"),
    "drop_draws": Param(False, type="boolean", title="Drop the drawn ids"),
    "drop_sample": Param(False, type="boolean", title="Drop the teacher's sample"),
    "workers": WORKERS,
    "invalid_rounds": Param(
        [],
        type="array",
        items={"type": "integer", "minimum": 0},
        title="Rounds to verify",
        description="Their damaged or foreign scores are made anew, by the teacher.",
    ),
    "branch": Param(
        None,
        type=["null", "string"],
        pattern=NAME,
        title="Branch",
        description="Name of a run to train on the new scores.",
    ),
    "teacher": Param(
        "main",
        type="string",
        pattern=NAME,
        title="Teacher",
        description="Teacher of the configuration whose place the new scores take.",
    ),
    "overrides": OVERRIDES,
}
OF_REPROCESS = {
    **OF_RUN,
    "from": "sources",
    "to": "name",
    "weight": "weights",
    "codec": "codec",
    "k": "k",
    "top-p": "top_p",
    "min-k": "min_k",
    "one-tail": "one_tail",
    "drop-candidates": "drop_candidates",
    "drop-draws": "drop_draws",
    "drop-sample": "drop_sample",
}


@task
def rounds_to_verify() -> Any:
    """Return the calls of `opd score --only-invalid`."""
    return [{"round": index} for index in get_current_context()["params"]["invalid_rounds"]]


@task(trigger_rule="none_failed")
def shares() -> Any:
    """Return the calls of `opd cache reprocess`; none where there are no sources."""
    params = get_current_context()["params"]
    return [{"worker": index} for index in range(params["workers"] if params["sources"] else 0)]


@task.short_circuit(trigger_rule="none_failed")
def is_wanted() -> Any:
    """Return whether a branch is to be trained."""
    return bool(get_current_context()["params"]["branch"])


@task
def compare(before: Any, after: Any) -> Any:
    """Return the figures of round 0 in the run and in the branch, and log them side by side."""
    figures = {}
    for name in ("accuracy", "reverse_kl", "teacher_tokens"):
        figures[name] = {"run": before.get(name), "branch": after.get(name)}
        print(f"{name}: {before['run']} {before.get(name)}, {after['run']} {after.get(name)}")
    return figures


@task_group
def branch() -> None:
    """Train round 0 of a run on the new scores, and hold it against the configuration's run."""
    here = {"round": 0}
    other = {"set": ["run.name={branch}", "teachers.{teacher}.scores={name}"]}

    def figures(task_id: str, options: dict[str, Any]) -> Any:
        call = Call(("status",), options, OF_RUN)
        return opd_task(task_id, call, kind="plan", settings=SETTINGS, trigger_rule="none_failed")

    tasks = round_tasks("branch", here | other, OF_RUN, {"workers": "workers"}, settings=SETTINGS)
    is_wanted() >> tasks.plan
    after, before = figures("figures", here | other), figures("figures_of_run", here)
    tasks.evaluate >> [after, before]
    compare(before.output, after.output)


@dag(
    dag_id="opd_reprocess",
    dag_display_name="opd: reprocess scores",
    description="New scores from cached ones, without the teacher; a student trained on them",
    doc_md=DOC,
    schedule=None,
    params=PARAMS,
    **OF_DAG,
)
def opd_reprocess() -> None:
    """Mend, reprocess, and try the result."""
    invalid = opd_task(
        "invalid",
        Call(("score",), {"only-invalid": True}, OF_RUN),
        kind="score",
        settings=SETTINGS,
        each=rounds_to_verify(),
    )
    shared = shares()
    call = Call(("cache", "reprocess"), {}, OF_REPROCESS)
    made = opd_task("reprocess", call, kind="cache", settings=SETTINGS, each=shared)
    invalid >> shared
    made >> branch()


opd_reprocess()
