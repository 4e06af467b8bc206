"""The DAG of upkeep: is the teacher cache sound, what is in it, what may go."""

import sys
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

sys.path.append(str(Path(__file__).parent))  # the modules beside this file, however it is loaded

from opd_command import Call
from opd_params import OF_DAG, config_param
from opd_settings import load_settings
from opd_task import opd_task

SETTINGS = load_settings()

DOC = """
### Upkeep of a root's teacher cache

**verify** reads a sample of each scorer's shards again and fails (exit code 4 or 3) where one is
damaged or foreign, by name. **stats** logs what the scores are like. **gc** says what nothing
names any more; **delete** removes it when `delete` is on and there is more than `threshold_gb` of
it, never what is younger than `older_than_h`. It may run while stages do.
Exit code 6, which is tried again, may say that another clean-up of the root is at work.
"""

PARAMS = {
    "config": config_param(SETTINGS),
    "sample": Param(
        100,
        type=["null", "integer"],
        minimum=1,
        title="Sample",
        description="Shards of each scorer that verify reads; empty for all.",
    ),
    "older_than_h": Param(
        24.0,
        type="number",
        minimum=0,
        title="Older than",
        description="Hours; younger objects are left alone.",
    ),
    "threshold_gb": Param(
        1.0,
        type="number",
        minimum=0,
        title="Threshold",
        description="GB of garbage above which it is deleted.",
    ),
    "delete": Param(
        False, type="boolean", title="Delete", description="Without it, gc only says what would go."
    ),
}
OF_ROOT = {"config": "config"}
OF_GC = {**OF_ROOT, "older-than": "older_than_h"}


@task.short_circuit
def is_worth_it(found: Any) -> Any:
    """Return whether garbage is to be deleted."""
    params = get_current_context()["params"]
    print(f"{found['objects']} objects, {found['bytes']} bytes may go")
    return params["delete"] and found["bytes"] > params["threshold_gb"] * 1e9


@dag(
    dag_id="opd_upkeep",
    dag_display_name="opd: upkeep",
    description="Verify a sample of the teacher cache, show statistics, collect garbage",
    doc_md=DOC,
    schedule=(SETTINGS.upkeep_schedule or None) if SETTINGS.config else None,
    max_active_runs=1,
    params=PARAMS,
    **OF_DAG,
)
def opd_upkeep() -> None:
    """Look first, then clean."""

    def cache(task_id: str, command: str, **call: Any) -> Any:
        return opd_task(task_id, Call(("cache", command), **call), kind="cache", settings=SETTINGS)

    verify = cache("verify", "verify", from_params={**OF_ROOT, "sample": "sample"})
    stats = cache("stats", "stats", from_params=OF_ROOT)
    found = cache("gc", "gc", from_params=OF_GC)
    delete = cache("delete", "gc", options={"delete": True}, from_params=OF_GC)
    verify >> stats
    verify >> found
    is_worth_it(found.output) >> delete


opd_upkeep()
