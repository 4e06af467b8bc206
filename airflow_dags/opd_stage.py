"""From a call of `opd` to an Airflow task: a process of the worker, or a pod.

Promises: exit codes 6 and 7 and interruptions are tried again, with growing pauses; any other
failure ends the task at once, with the message of `opd` in its log. A task holds no state: run
twice, cleared or killed, it finds what is committed and does the rest.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from opd_command import Call, CommandProcess, Outcome, brief, find_opd
from opd_notices import task_failed
from opd_settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

CHECKPOINTS = AssetAlias("opd_checkpoints")
"""Gives an asset for each committed checkpoint; DAGs may be scheduled on it."""
MAP_LABEL = "{{ task.each.get('teacher', '') }} {{ task.each.get('worker', '') }}"


class ProcessTask(BaseOperator):
    """Runs a call of `opd` as a process of this worker."""

    def __init__(
        self,
        *,
        call: Call,
        each: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        stop_s: float = 60.0,
        **options: Any,
    ) -> None:
        """Name the call.

        Args:
            call: command and options.
            each: options of this one of several mapped tasks.
            env: further environment.
            stop_s: seconds between SIGTERM and SIGKILL.
            options: those of every operator.
        """
        super().__init__(**options)
        self.call, self.each = call, dict(each or {})
        self.env, self.stop_s = dict(env or {}), stop_s
        self._process: CommandProcess | None = None

    def execute(self, context: "Context") -> Any:
        """Run it and return what of its result goes to XCom.

        Raises:
            AirflowException: it may succeed when it is tried again.
            AirflowFailException: it will not.
            AirflowSkipException: there is nothing to do.
        """
        arguments = arguments_of(self, context)
        try:
            program = find_opd({**os.environ, **self.env})
        except FileNotFoundError as error:
            raise AirflowFailException(str(error)) from error
        self.log.info("runs: %s", " ".join([*program, *arguments]))
        self._process = CommandProcess([*program, *arguments], self.env)
        try:
            outcome = self._process.wait(lambda line: self.log.info("%s", line))
        except BaseException:  # a time-out
            self.on_kill()
            raise
        return end_of(self, outcome, context)

    def on_kill(self) -> None:
        """End the process when the task is cleared, marked or timed out."""
        if self._process is not None:
            self._process.stop(self.stop_s)


def arguments_of(task: Any, context: "Context") -> list[str]:
    """Return the arguments of a task's call.

    Raises:
        AirflowSkipException: the round's plan has no such call.
    """
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


def opd_task(
    task_id: str, call: Call, *, kind: str, settings: Settings, each: Any = None, **options: Any
) -> Any:
    """Return the task of a call, mapped over a list where there is one.

    Args:
        task_id: its name.
        call: command and options.
        kind: one of `opd_settings.KINDS`: which hardware, pool and time it has.
        settings: where tasks run.
        each: XCom of the options of each mapped task; none of them makes it skipped.
        options: further options of the operator.
    """
    hardware = settings.kind(kind)
    common = {
        "task_id": task_id,
        "call": call,
        "retries": settings.retries,
        "retry_delay": timedelta(seconds=settings.retry_delay_s),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=settings.max_retry_delay_s),
        "execution_timeout": timedelta(hours=hardware.timeout_h),
        "on_failure_callback": task_failed,
        "pool_slots": hardware.pool_slots,
        **({"pool": hardware.pool} if hardware.pool else {}),
        **({"queue": hardware.queue} if hardware.queue else {}),
        **options,
    }
    operator: Any = ProcessTask
    if settings.backend == "kubernetes":
        from opd_pod import PodTask, pod_options

        operator = PodTask
        common |= pod_options(settings, hardware)
    else:
        common |= {"env": hardware.env, "stop_s": settings.stop_s}
    if each is None:
        return operator(**common)
    return operator.partial(**common, map_index_template=MAP_LABEL).expand(each=each)
