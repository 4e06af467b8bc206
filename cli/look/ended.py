"""What `opd run` tells at its end, beside the results of its stages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from cli.output import faults_in, is_main_process, print_json, whole_json, without_reward
from cli.terminal import say, warn
from pipeline.runs.alarms.judging import Alarm, run_alarms
from pipeline.runs.run import Run
from schemas.errors import DataError, OpdError, RegressionError


def alarm_lines(alarms: Sequence[Alarm]) -> list[str]:
    """Return what looks wrong, a line for each alarm."""
    return [f"{one.severity}: {one.sentence}" for one in alarms]


@contextmanager
def alarms_beside_errors(run: Run) -> Iterator[None]:
    """Let an end of the block by `[gate]` or impossible numbers tell alarms, which may say why."""
    try:
        yield
    except (RegressionError, DataError) as error:
        with suppress(OpdError):  # what cannot be read now must not hide why the run ends
            alarms = run_alarms(run)
            error.beside = {"alarms": [asdict(one) for one in alarms]}
            if is_main_process():
                warn(*alarm_lines(alarms))
        raise


def tell_end(run: Run, lines: list[dict[str, Any]], seconds: float, *, as_json: bool) -> None:
    """Print what a whole run did, for machines, or what is left to say of it, and its alarms.

    Args:
        run: the run.
        lines: the results of its stages, as JSON objects.
        seconds: of all of them.
        as_json: whether a machine reads it.
    """
    alarms = run_alarms(run)
    if as_json:
        whole = whole_json(run.name, lines, seconds)
        print_json({**whole, "alarms": [asdict(one) for one in alarms]})
        return
    if not lines:
        say(f"run {run.name}: nothing is left to do")
    if told := without_reward(faults_in(lines)):
        say(f"run {run.name}: {told}")
    for line in alarm_lines(alarms):
        say(line)
