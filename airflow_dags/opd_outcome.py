"""What a call of `opd` means to Airflow: its arguments before, its result or failure after.

Promises: exit codes 6 and 7 and interruptions are tried again; any other failure ends the task at
once, with the message of `opd` in its log.
"""

from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from opd_allowed import refusal
from opd_command import Outcome, brief
from opd_settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk import Context

CHECKPOINTS = AssetAlias("opd_checkpoints")
"""Gives an asset for each committed checkpoint; DAGs may be scheduled on it."""


def arguments_of(task: Any, context: "Context") -> list[str]:
    """Return the arguments of a task's call.

    Raises:
        AirflowFailException: the settings do not allow the DAG run's Params.
        AirflowSkipException: the round's plan has no such call.
    """
    refused = refusal(context["params"], load_settings())
    if refused is not None:
        raise AirflowFailException(refused)
    if task.call.needs is not None:
        source, key = task.call.needs
        plan = context["ti"].xcom_pull(task_ids=source, key="result") or {}
        if not plan.get(key):
            raise AirflowSkipException(f"nothing to do: the plan of the round has no {key}")
    arguments: list[str] = task.call.command_line(context["params"], task.each)
    return arguments


def end_of(task: Any, outcome: Outcome, context: "Context") -> Any:
    """Return what goes to XCom after a good end, with an event for a new checkpoint.

    Raises:
        AirflowException: it may succeed when it is tried again.
        AirflowFailException: it will not.
    """
    if outcome.code != 0:
        task.log.error(outcome.in_words())
        kind = AirflowException if outcome.may_be_repeated else AirflowFailException
        raise kind(outcome.in_words())
    result = brief(outcome.result)
    if CHECKPOINTS in task.outlets and "checkpoint" in result:
        uri = result["checkpoint"]
        asset = Asset(uri if "://" in uri else f"file://{uri}")
        extra = {key: result.get(key) for key in ("run", "round", "manifest")}
        context["outlet_events"][CHECKPOINTS].add(asset, extra=extra)
    if task.call.returns is None:
        return result
    context["ti"].xcom_push(key="result", value=result)
    return result[task.call.returns]
