"""What happens when a task or a run fails, or a run succeeds: a line in the log, and `notify`."""

import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any

from opd_settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)
NOTIFY_S = 30
"""Seconds that the notify command has."""


def task_failed(context: "Context") -> None:
    """Tell of a task that failed for good."""
    task = context["ti"]
    told = {
        "event": "task_failed",
        "dag": task.dag_id,
        "dag_run": task.run_id,
        "task": task.task_id,
        "map_index": task.map_index,
        "attempt": task.try_number,
        "error": str(context.get("exception") or ""),
    }
    _tell(told)


def run_failed(context: "Context") -> None:
    """Tell of a DAG run that failed."""
    _tell(_run("run_failed", context))


def run_succeeded(context: "Context") -> None:
    """Tell of a DAG run that ended well."""
    _tell(_run("run_succeeded", context))


def _run(event: str, context: "Context") -> dict[str, Any]:
    run: Any = context.get("dag_run")
    return {
        "event": event,
        "dag": getattr(run, "dag_id", None),
        "dag_run": getattr(run, "run_id", None),
        "reason": context.get("reason"),
    }


def _tell(told: dict[str, Any]) -> None:
    """Log an event and hand it to the notify command; its failure fails nothing else."""
    line = json.dumps(told)
    log.info("opd: %s", line)
    command = load_settings().notify
    if not command:
        return
    try:
        subprocess.run(command, input=line, text=True, timeout=NOTIFY_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the notify command %s failed: %s", command[0], error)
