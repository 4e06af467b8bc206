"""Tells a tracker of made-up parts, in a process for each time that it is killed at a moment.

`python trackertold.py KIND FOLDER MOMENT…` runs where the libraries are. A moment is
`module:name:count:before` or `:after` of the call at which the process kills itself; each begins
where the one before was killed. A process that nothing kills comes last.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Cell, Part, Point, Subject, Tracker
from schemas.config.tracking.track import TrackSection

SUBJECT = Subject("told", "told-0123456789ab", {"loss.kind": "forward_kl", "run.seed": "7"})
STEPS, FIGURES = 40, 40
"""Steps of a round, and figures of a step: a round is more than a block of W&B's files."""

SECTIONS: dict[str, dict[str, Any]] = {
    "tensorboard": {"folder": "seen"},
    "mlflow": {"uri": "seen/mlflow.db"},
    "wandb": {"folder": "seen", "mode": "offline"},
    "trackio": {"folder": "seen"},
}


def parts() -> tuple[Part, ...]:
    """Return two rounds and their evaluations, of which the first comes late."""
    rounds, grades = [], []
    for index in range(2):
        first, place = index * STEPS, index * (STEPS + 2)
        steps = [_point("step", first + n, place + n) for n in range(STEPS)]
        whole = Point("round", index, place + STEPS, {"train/loss": 0.5 + index, "steps": STEPS})
        sample: dict[str, Cell] = {"round": index, "prompt": "1 + 1 =", "response": "<b>2|`"}
        rounds.append(Part(f"{index:04d}", (*steps, whole), (sample,)))
        graded = Point("round", index, place + STEPS + 1, {"accuracy": 0.25 * (1 + index)})
        grades.append(Part(f"{index:04d}-eval", (graded,)))
    return (*rounds, *grades)


def _point(axis: Any, number: int, order: int) -> Point:
    return Point(axis, number, order, {f"figure{i:02d}": number + i / 64 for i in range(FIGURES)})


def opened(kind: str, folder: Path) -> Tracker:
    """Return a tracker of a folder."""
    section = TrackSection.model_validate({kind: SECTIONS[kind]})
    module = importlib.import_module(f"pipeline.trackers.{kind}")
    tracker: Tracker = module.opened(ConfigPlace(str(folder)), section, SUBJECT)
    return tracker


def tell(kind: str, folder: Path) -> None:
    """Send what the tracker lacks, and a report."""
    tracker = opened(kind, folder)
    for part in parts():
        if part.name not in tracker.sent():
            tracker.send(part)
    page = folder / "report.html"
    page.write_text("<p>a report</p>")
    tracker.attach(page)
    tracker.close()


def arm(moment: str, folder: Path) -> None:
    """Have this process killed at a moment."""
    module, name, count, when = moment.split(":")
    *path, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for step in path:
        owner = getattr(owner, step)
    call: Callable[..., Any] = getattr(owner, last)
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(count) and when == "before":
            kill(folder)
        result = call(*arguments, **named)
        if calls == int(count):
            kill(folder)
        return result

    is_static = isinstance(vars(owner).get(last), staticmethod)
    setattr(owner, last, staticmethod(counted) if is_static else counted)


def kill(folder: Path) -> None:
    """Kill this process, once W&B has put a block of what it was told to its file, if it will."""
    deadline = time.monotonic() + 2.0
    files = list(folder.glob("seen/wandb/offline-run-*/*.wandb"))
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    while newest is not None and newest.stat().st_size < 32768 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def main(kind: str, folder: Path, moments: list[str]) -> int:
    """Return 0 if each process was killed as it was asked, and the last one ended."""
    importlib.import_module(f"pipeline.trackers.{kind}")
    os.environ["TRACKIO_DIR"] = str(folder / "seen")
    for name in {moment.partition(":")[0] for moment in moments}:
        importlib.import_module(name)
    for moment in [*moments, ""]:
        child = os.fork()
        if child == 0:
            if moment:
                arm(moment, folder)
            tell(kind, folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != (signal.SIGKILL if moment else 0):
            print(f"{moment or 'the last process'}: it ended with status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
