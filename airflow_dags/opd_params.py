"""What the DAGs share: the Params that say which run is meant, and the options of a DAG."""

from datetime import datetime
from typing import Any

from airflow.sdk import Param

from opd_notices import run_failed, run_succeeded
from opd_settings import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of runs, teachers and scorers."""
OF_RUN = {"config": "config", "set": "overrides"}
"""Options of a call that works for a run, and the Params that they are."""

OVERRIDES = Param(
    [],
    type="array",
    items={"type": "string", "pattern": r"^[^.=]+\.[^=]+=.*$"},
    title="Overrides",
    description="Items section.key=value; the settings say which keys may be replaced.",
)
WORKERS = Param(
    1,
    type="integer",
    minimum=1,
    maximum=100,
    title="Workers",
    description="Tasks that share the units of a stage; of score, for each teacher.",
)

OF_DAG: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1),
    "catchup": False,
    "tags": ["opd"],
    "on_failure_callback": run_failed,
    "on_success_callback": run_succeeded,
}
"""Options of every DAG."""


def config_param(settings: Settings) -> Param:
    """Return the Param that names a run's TOML."""
    return Param(
        settings.config or "",
        type="string",
        minLength=1,
        title="Configuration",
        description="TOML of the run, one that the settings allow: a path that every worker sees, "
        "or s3://bucket/run.toml.",
    )
