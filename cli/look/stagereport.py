"""What the stage commands print of their work, as it is done, and whom else they tell."""

import time
from collections.abc import Callable, Iterable, Sequence

from cli.look.ended import alarms_beside_errors, tell_end
from cli.output import (
    is_main_process,
    joined_json,
    make_progress,
    print_json,
    print_result,
    result_json,
)
from pipeline.runs.reporting import StageResult
from pipeline.runs.run import Run


def report_stages(
    run: Run,
    as_json: bool,
    work: Callable[[], Iterable[StageResult]],
    *,
    whole_run: bool = False,
    tracked: Sequence[str] = (),
) -> None:
    """Do the work, store how long each part took, and print results as they come.

    Where `tracked` names the configuration, trackers are told too.
    """
    with alarms_beside_errors(run):
        if not tracked or run.config.track is None or not is_main_process():
            _do(run, as_json, work, whole_run=whole_run, told=lambda: None)
            return
        from pipeline.trackers.following import following

        with following(run, tracked, make_progress(as_json=as_json).note) as told:
            _do(run, as_json, work, whole_run=whole_run, told=told)


def tracking(config: str, overrides: Sequence[str] | None) -> list[str]:
    """Return the arguments that name a configuration to another command."""
    return ["-c", config, *(word for item in overrides or () for word in ("--set", item))]


def _do(
    run: Run,
    as_json: bool,
    work: Callable[[], Iterable[StageResult]],
    *,
    whole_run: bool,
    told: Callable[[], None],
) -> None:
    from pipeline.runs.reporting import record_time

    lines, begin, total = [], time.monotonic(), 0.0
    for result in work():
        seconds, begin = time.monotonic() - begin, time.monotonic()
        total += seconds
        if not is_main_process():
            continue
        record_time(run, result, seconds)
        if result.manifest is not None and result.stage in ("train", "eval"):
            told()
        lines.append(result_json(result, seconds))
        if not as_json:
            print_result(result, seconds)
    if whole_run and is_main_process():
        tell_end(run, lines, total, as_json=as_json)
    elif as_json and lines:
        print_json(joined_json(lines))
