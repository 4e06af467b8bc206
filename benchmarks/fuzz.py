"""`fuzz`: parsers and decoders on random and damaged inputs, each ending in data or a refusal.

What ends otherwise is a fault of opd: it is printed with the line that repeats it, and the
command ends with 1.
"""

import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from benchmarks.kit.fuzztargets import TARGETS
from benchmarks.kit.measure import Case, Result, spread
from schemas.foreign import excerpt

MINUTES, QUICK_MINUTES = 10.0, 0.02

SHOWN = 20
"""Failures that are printed and kept; all are counted."""


@dataclass
class Tally:
    """What became of the inputs of one target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0
    """Seconds of all; the target that has had the fewest is next."""

    def add(self, outcome: str, seconds: float) -> None:
        """Count one input."""
        self.outcomes[outcome] += 1
        self.seconds.append(seconds)
        self.spent += seconds


def run(*, quick: bool, seed: int, minutes: float | None = None) -> Result:
    """Run all targets in turn for some minutes; the figures count executions and failures."""
    given = minutes if minutes is not None else QUICK_MINUTES if quick else MINUTES
    until = time.monotonic() + 60 * given
    tallies = {name: Tally() for name in TARGETS}
    failures = list[str]()
    while time.monotonic() < until or not all(tally.seconds for tally in tallies.values()):
        name = min(tallies, key=lambda each: tallies[each].spent)
        tally, begin = tallies[name], time.perf_counter()
        number = Random(f"{seed}/{name}/{len(tally.seconds)}").getrandbits(63)
        tally.add(outcome(name, number, failures), time.perf_counter() - begin)
    executions = sum(len(tally.seconds) for tally in tallies.values())
    spent = sum(tally.spent for tally in tallies.values())
    targets = {
        name: {"executions": len(tally.seconds), **_counts(tally)}
        for name, tally in tallies.items()
    }
    return Result(
        {"executions": executions, "executions_per_s": executions / spent},
        [_case(name, tally) for name, tally in tallies.items()],
        {"targets": targets},
        {"failures": failures},
    )


def outcome(name: str, number: int, failures: list[str]) -> str:
    """Return what an input of a target ends as; a failure is printed and kept.

    Args:
        name: the target.
        number: seed of the input.
        failures: those so far.
    """
    target = TARGETS[name]
    try:
        return target.check(target.make(Random(number)))
    except Exception as error:
        words = f"{name}: {type(error).__name__}: {excerpt(str(error))}"
        if len(failures) < SHOWN:
            failures.append(f"{words}; repeat with {_line(name, number)}")
            traceback.print_exc()
            print(failures[-1], file=sys.stderr, flush=True)
        return "failures"


def _line(name: str, number: int) -> str:
    return (
        "python -c 'from random import Random; from benchmarks.kit.fuzztargets import TARGETS; "
        f't = TARGETS["{name}"]; print(t.check(t.make(Random({number}))))\''
    )


def _counts(tally: Tally) -> dict[str, float]:
    return {"failures": 0, **dict(sorted(tally.outcomes.items()))}


def _case(name: str, tally: Tally) -> Case:
    return {
        "case": name,
        "executions": len(tally.seconds),
        "ms_per_execution": spread([1000 * second for second in tally.seconds]),
        **{word: count for word, count in sorted(tally.outcomes.items())},
    }
