"""What `opd run` tells at its end, beside the results of its stages."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cli.output import faults_in, print_json, whole_json, without_reward
from cli.terminal import say
from pipeline.runs.alarms.judging import Alarm, run_alarms
from pipeline.runs.run import Run


def alarm_lines(alarms: Sequence[Alarm]) -> list[str]:
    """Return what looks wrong, a line for each alarm."""
    return [f"{one.severity}: {one.sentence}" for one in alarms]


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
