"""A call of `opd` as a process of the worker."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from opd_command import Call, CommandProcess, find_opd
from opd_outcome import arguments_of, end_of

if TYPE_CHECKING:
    from airflow.sdk import Context


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
