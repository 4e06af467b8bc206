"""A run that a Python program has opened: its stages, where it stands, and what it has stored.

Promises: a stage does what the command of its name does; errors are opd's own.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api.overrides import items_of
from pipeline.runs.configsource import read_config
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, record_time
from pipeline.runs.run import Run
from pipeline.runs.run import open_run as open_stored
from pipeline.runs.units import Worker
from pipeline.store.faults import known_error
from pipeline.store.paths import located
from schemas.config.run import MAX_ROUNDS, RunConfig
from schemas.errors import ConfigError, OpdError

if TYPE_CHECKING:
    import polars as pl

    from pipeline.api.dataset import RoundDataset
    from pipeline.report.writing import Report
    from pipeline.runs.status import RunStatus

EXIT_KINDS = {kind.exit_code: kind for kind in OpdError.__subclasses__()}


class Quiet:
    """Progress that nobody is told of."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Begin a stage."""

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count what is done."""

    def note(self, text: str) -> None:
        """Take a line of text."""

    def stop(self) -> None:
        """End the stage."""


def open_run(
    config: str | Path,
    *,
    overrides: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> "OpenRun":
    """Return a run to work with; nothing is begun by it.

    Args:
        config: its TOML: a path, or a URL such as s3://bucket/run.toml.
        overrides: dotted keys to replace, such as `{"loss.kind": "jsd"}`. Where a key names a
            function of a file beside the TOML, the function itself may be given.
        progress: told of each unit.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    with _own_errors():
        place = located(str(config))
        path = Path(place.path).resolve() if place.is_local else None
        items = items_of(overrides or {}, path.parent if path else None)
        location = str(path or config)
        run = open_stored(read_config(location, items))
    return OpenRun(run, location, items, progress or Quiet())


class OpenRun:
    """A run, as `open` gives it."""

    def __init__(self, run: Run, location: str, items: list[str], progress: Progress) -> None:
        """Take a run, its TOML, the overrides that it was opened with, and who is told."""
        self._run, self._location, self._items, self._progress = run, location, items, progress

    def __repr__(self) -> str:
        """Return its name and its root."""
        return f"<run {self.name} at {self._run.storage.root}>"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._run.name

    @property
    def config(self) -> RunConfig:
        """Every key of its configuration."""
        return self._run.config

    # --- stages: what is done already costs nothing ---

    def rollout(self, round_index: int, *, teacher: str | None = None) -> StageResult:
        """Let the student, or a teacher in its place, sample a round's responses."""
        from pipeline.stages.rollout import run_rollout

        return self._one(
            round_index, lambda told: run_rollout(self._run, round_index, teacher=teacher, **told)
        )

    def grade(self, round_index: int, *, teacher: str | None = None) -> StageResult:
        """Give the responses of a round, or a teacher's, their rewards."""
        from pipeline.stages.grade import run_grade

        return self._one(
            round_index, lambda told: run_grade(self._run, round_index, teacher=teacher, **told)
        )

    def score(self, round_index: int, *, teacher: str | None = None) -> list[StageResult]:
        """Let all teachers, or one, score what the student sampled; return a result for each."""
        from pipeline.stages.score import run_score

        _check_round(round_index)
        told = self._told()
        return self._timed(lambda: run_score(self._run, round_index, teacher=teacher, **told))

    def train(self, round_index: int) -> StageResult:
        """Train the next checkpoint on a round's stored scores."""
        return self._one(round_index, lambda _: self._train(round_index))

    def eval(self, round_index: int) -> StageResult:  # noqa: A003  # as the command is called
        """Grade the student that a round trained, on held-out prompts."""
        from pipeline.stages.evaluate import run_eval
        from pipeline.stages.subjects import round_subject

        return self._one(
            round_index,
            lambda told: run_eval(self._run, round_subject(self._run, round_index), **told),
        )

    def baseline(self) -> list[StageResult]:
        """Grade the student as it came, and the teachers."""
        from pipeline.stages.evaluate import run_eval
        from pipeline.stages.subjects import baseline_subjects

        told = self._told()
        return self._timed(
            lambda: (run_eval(self._run, one, **told) for one in baseline_subjects(self._run))
        )

    def run(self, rounds: int | None = None) -> list[StageResult]:
        """Run all stages of all rounds that are left, up to a number of rounds in total."""
        from pipeline.stages.rounds import run_rounds

        upto = self.config.run.rounds if rounds is None else rounds
        _check_round(upto - 1)
        return self._timed(
            lambda: run_rounds(self._run, upto, train=self._train, progress=self._progress)
        )

    # --- looks: nothing is changed by them ---

    def status(self, round_index: int | None = None) -> "RunStatus":
        """Return where the rounds stand, or one of them."""
        from pipeline.runs.status import run_status

        with _own_errors():
            return run_status(self._run, round_index)

    def report(self, path: str | Path, *, rows: int = 200) -> "Report":
        """Write the run as an HTML page, from `rows` sequences of a round at most."""
        from pipeline.report.writing import write_report

        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        with _own_errors():
            return write_report([self._run], Path(path), rows=rows, column=None, written_at=now)

    def rollouts(self, round_index: int, *, teacher: str | None = None) -> "pl.LazyFrame":
        """Return what a round sampled, a row for each sequence; columns are in docs/data.md."""
        from pipeline.api.frames import rollouts

        _check_round(round_index)
        with _own_errors():
            return rollouts(self._run, round_index, teacher=teacher)

    def scores(self, round_index: int, teacher: str | None = None) -> "pl.LazyFrame":
        """Return a teacher's scores of a round; `sequence_id` joins them with the rollouts."""
        from pipeline.api.frames import scores

        _check_round(round_index)
        with _own_errors():
            name = self.config.default_teacher if teacher is None else teacher
            return scores(self._run, round_index, teacher=name)

    def dataset(self, round_index: int, *, keep: int = 2) -> "RoundDataset":
        """Return a round as a torch dataset that holds `keep` units in memory at most."""
        _check_round(round_index)
        with _own_errors():
            from pipeline.api.dataset import RoundDataset

            return RoundDataset(self._run, round_index, keep=keep)

    # --- how stages are called ---

    def _told(self) -> dict[str, Any]:
        return {"worker": Worker(), "progress": self._progress}

    def _one(self, round_index: int, work: Callable[[dict[str, Any]], StageResult]) -> StageResult:
        _check_round(round_index)
        return self._timed(lambda: [work(self._told())])[0]

    def _timed(self, work: Callable[[], Iterable[StageResult]]) -> list[StageResult]:
        """Do the work, and store how long each part took, as the commands do."""
        done, begin = [], time.monotonic()
        with _own_errors():
            for result in work():
                seconds, begin = time.monotonic() - begin, time.monotonic()
                if os.environ.get("RANK", "0") == "0":
                    record_time(self._run, result, seconds)
                done.append(result)
        return done

    def _train(self, round_index: int) -> StageResult:
        """Train a round in this process, or in several that are started for it."""
        from pipeline.learner.launch import launch_learner, needs_launch
        from pipeline.stages.train import finished_result, run_train

        if not needs_launch(self._run):
            return run_train(self._run, round_index, progress=self._progress)
        sets = [word for item in self._items for word in ("--set", item)]
        command = ["-P", "-m", "cli.main", "train", "-c", self._location]
        done = launch_learner(
            self._run, round_index, [*command, "--round", str(round_index), *sets]
        )
        manifest = self._run.train(round_index)
        if done.exit_code or manifest is None:
            kind = EXIT_KINDS.get(done.exit_code, OpdError)
            raise kind(f"the learner of round {round_index} failed; its message is above")
        return finished_result(self._run, manifest)


def _check_round(round_index: int) -> None:
    if isinstance(round_index, bool) or not isinstance(round_index, int):
        raise ConfigError(f"a round is a whole number, found a {type(round_index).__name__}")
    if not 0 <= round_index < MAX_ROUNDS:
        raise ConfigError(f"there is no round {round_index}: they count from 0 to {MAX_ROUNDS - 1}")


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise faults of disks, stores and memory as the errors of opd that they are."""
    try:
        yield
    except OpdError:
        raise
    except Exception as error:
        known = known_error(error)
        if known is None:
            raise
        raise known from error
