"""Which checkpoint of a run is its outcome, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.report.stored.records import RunRecords
from pipeline.runs.run import Run
from schemas.config.run import MAX_ROUNDS
from schemas.errors import ConfigError
from schemas.foreign import shown
from schemas.keys import CHECKPOINTS
from schemas.records.runs import EvalManifest
from schemas.records.training import CheckpointManifest

LAST, BEST = "last", "best"


@dataclass(frozen=True)
class Choice:
    """A checkpoint of a run."""

    manifest: CheckpointManifest
    number: int
    """Rounds that it has learned."""
    why: str
    """How it was chosen, as the end of a sentence."""


def wanted_number(text: str) -> int | None:
    """Return the number that `--checkpoint` names; None where it is a word that names one.

    Raises:
        ConfigError: it is neither.
    """
    if text in (LAST, BEST):
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= MAX_ROUNDS:
        return int(text)
    raise ConfigError(
        f"--checkpoint takes a number from 0 to {MAX_ROUNDS:,}, {LAST} or {BEST}; found "
        f"{shown(text)}"
    )


def choose(records: RunRecords, wanted: str) -> Choice:
    """Return the checkpoint that `--checkpoint` asks for.

    Raises:
        ConfigError: the run has no such checkpoint, or nothing says which is the best.
        DataError: a manifest is damaged.
    """
    run, number = records.run, wanted_number(wanted)
    if number is not None:
        found = run.checkpoint(number)
        if found is None:
            raise ConfigError(
                f"run {run.name} has no checkpoint {number}; it has {_those(_listed(run))}"
            )
        return Choice(found, number, f"checkpoint {number} was asked for")
    return _last(run) if wanted == LAST else _best(records)


def evaluation_of(records: RunRecords, number: int) -> EvalManifest | None:
    """Return the evaluation of a checkpoint, or None where it was not graded."""
    return records.start if number == 0 else dict(_graded(records)).get(number)


def _last(run: Run) -> Choice:
    for number in reversed(_listed(run)):
        found = run.checkpoint(number)
        if found is not None:
            return Choice(found, number, f"checkpoint {number} is the last")
    raise ConfigError(
        f"run {run.name} at {run.storage.root} has no checkpoint yet: begin it with `opd run`, or "
        "correct run.name and run.root"
    )


def _best(records: RunRecords) -> Choice:
    run = records.run
    graded = [(n, e.accuracy) for n, e in _graded(records)]
    for number, accuracy in sorted(graded, key=lambda one: (-one[1], one[0])):
        found = run.checkpoint(number)
        if found is not None:  # an older one may have been deleted
            others = f"the best of the {len(graded)} that were graded"
            return Choice(found, number, f"with {accuracy:.1%}, checkpoint {number} is {others}")
    _last(run)  # says so where there is none at all
    raise ConfigError(
        f"no checkpoint of run {run.name} was graded, so none is known to be the best: grade them "
        f"with `opd eval` and an [eval] section, or give --checkpoint {LAST} or a number"
    )


def _graded(records: RunRecords) -> Iterator[tuple[int, EvalManifest]]:
    if records.start is not None:
        yield 0, records.start
    for one in records.rounds:
        if one.evaluation is not None:
            yield one.round + 1, one.evaluation


def _listed(run: Run) -> list[int]:
    names = run.storage.folders(f"{run.folder}/{CHECKPOINTS}")
    return sorted(int(name) for name in names if name.isdecimal())


def _those(numbers: list[int]) -> str:
    if not numbers:
        return "none yet: begin it with `opd run`"
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]} alone"
