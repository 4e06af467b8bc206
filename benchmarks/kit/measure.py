"""Measuring: sides run in turn, CPU seconds of one thread beside wall time, medians with spread.

Promises: every ratio is taken inside one round of one run, so that a slow spell of the machine
meets both sides; the first side of a round changes from round to round.
"""

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Action = Callable[[], int]
"""One run of a side; returns how many units, such as tokens, it did."""

MIN_CPU_S = 1e-6
"""Shortest time that is taken for real: no ratio divides by zero."""


@dataclass(frozen=True)
class Spread:
    """Median of some values, with the smallest and the largest."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Timing:
    """What one run took; CPU seconds are those of the whole process."""

    units: int
    cpu_s: float
    wall_s: float

    @property
    def cost_s(self) -> float:
        """CPU seconds per unit."""
        return max(self.cpu_s, MIN_CPU_S) / self.units


Case = dict[str, str | int | float | Spread]
"""What was measured in one situation, by name."""


@dataclass(frozen=True)
class Result:
    """Outcome of a benchmark: the figures it is known by, and every case behind them."""

    figures: dict[str, float]
    cases: list[Case]
    nested: Mapping[str, Any] = field(default_factory=dict)
    """Figures of several things that are known by the same names, such as `codecs`, and lists."""
    found: dict[str, list[str]] = field(default_factory=dict)
    """What was found, in words; the command ends with 1 where there are `failures`."""


def headline(cases: Sequence[Case], name: str, pick: Callable[[list[float]], float]) -> float:
    """Return one number for all cases: `pick`, such as `max`, of their values or medians."""
    found = [case[name] for case in cases]
    numbers = [value.median if isinstance(value, Spread) else value for value in found]
    return pick([number for number in numbers if not isinstance(number, str)])


def spread(values: Sequence[float]) -> Spread:
    """Return median, smallest and largest of some values."""
    return Spread(statistics.median(values), min(values), max(values))


def timed(action: Action, wait: Callable[[], None] = lambda: None) -> Timing:
    """Run a side once and return what that took.

    Args:
        action: the side.
        wait: returns when everything that was started on a device has ended.
    """
    gc.collect()
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    units = action()
    wait()
    return Timing(units, time.process_time() - cpu, time.perf_counter() - wall)


def alternate(
    sides: Mapping[str, Action], repeats: int, wait: Callable[[], None] = lambda: None
) -> dict[str, list[Timing]]:
    """Return the timings of each side: all sides once a round, in turned order every other round.

    Args:
        sides: what is compared, by name.
        repeats: rounds that are measured.
        wait: as for `timed`.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for round_index in range(repeats):
        order = list(sides)[:: -1 if round_index % 2 else 1]
        for name in order:
            timings[name].append(timed(sides[name], wait))
    return timings


def waiting(device: str) -> Callable[[], None]:
    """Return what waits for a device's work to end; on a CPU there is nothing to wait for."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def cost_ratio(ours: Sequence[Timing], other: Sequence[Timing]) -> Spread:
    """Return CPU seconds per unit of one side over another's, round by round; below 1 we win."""
    return spread([a.cost_s / b.cost_s for a, b in zip(ours, other, strict=True)])


def wall_ratio(ours: Sequence[Timing], other: Sequence[Timing]) -> Spread:
    """Return wall seconds per unit of one side over another's, round by round; below 1 we win.

    For work on a device, which costs the processor next to nothing.
    """
    pairs = zip(ours, other, strict=True)
    return spread([(a.wall_s / a.units) / (b.wall_s / b.units) for a, b in pairs])


def speed_ratio(ours: Sequence[Timing], other: Sequence[Timing]) -> Spread:
    """Return units per CPU second of one side over another's, round by round; above 1 we win."""
    return cost_ratio(other, ours)


def cpu_seconds(timings: Sequence[Timing]) -> Spread:
    """Return CPU seconds per run."""
    return spread([t.cpu_s for t in timings])


def wall_seconds(timings: Sequence[Timing]) -> Spread:
    """Return wall seconds per run."""
    return spread([t.wall_s for t in timings])


def units_per_cpu_s(timings: Sequence[Timing]) -> Spread:
    """Return units per CPU second."""
    return spread([1 / t.cost_s for t in timings])


def units_per_wall_s(timings: Sequence[Timing]) -> Spread:
    """Return units per wall second."""
    return spread([t.units / max(t.wall_s, MIN_CPU_S) for t in timings])


def peak_bytes() -> int:
    """Return the largest resident size of this process so far.

    On Linux from its own memory map: `ru_maxrss` would begin with the size of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_child(preload: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns in a process of its own, whose memory nobody else used.

    Args:
        preload: module that the children's parent imports once, for all of them.
        function: a function of a module, not of another function.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()
