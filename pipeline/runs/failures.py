"""The last failure of a stage, kept beside it, so that whoever looks sees why it stands still.

Promises: the error goes on as it came, also where the store takes no record of it; a run that has
not begun stays as it is.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from pipeline.runs.run import Run
from pipeline.store.faults import known_error
from pipeline.store.records import find_record
from schemas.errors import IdentityError, OpdError
from schemas.foreign import excerpt, without_secrets
from schemas.keys import failure_key, run_key
from schemas.records.runs import FailureRecord

BUG = 1
"""Exit code of an error that nobody foresaw."""


P = ParamSpec("P")
R = TypeVar("R")


class OfRound(Protocol):
    """Something that a stage works on."""

    @property
    def round_index(self) -> int | None:
        """Round it belongs to; None for what is graded before the first."""


T = TypeVar("T", bound=int | OfRound)
StageCall = Callable[Concatenate[Run, T, P], R]


def keeps_failure(stage: str) -> Callable[[StageCall[T, P, R]], StageCall[T, P, R]]:
    """Return a decorator of a stage: where its call fails, a record says why.

    Of the processes of a learner the first one records: others fail because it did, or end with it.
    """

    def kept(call: StageCall[T, P, R]) -> StageCall[T, P, R]:
        @wraps(call)
        def calling(run: Run, work: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(run, work, *args, **kwargs)
            except Exception as error:
                round_index = work if isinstance(work, int) else work.round_index
                if round_index is not None and os.environ.get("RANK", "0") == "0":
                    with suppress(OpdError):
                        _keep(run, round_index, stage, error)
                raise

        return calling

    return kept


def last_failure(run: Run, round_index: int, stage: str) -> FailureRecord | None:
    """Return why a stage failed when it last did, None where it never did."""
    key = failure_key(run.stage_folder(round_index, stage))
    return find_record(run.storage, key, FailureRecord)


def _keep(run: Run, round_index: int, stage: str, error: Exception) -> None:
    known = error if isinstance(error, OpdError) else known_error(error)
    if isinstance(known, IdentityError) or not run.storage.exists(run_key(run.name)):
        return  # the run is somebody else's, or has not begun
    text = str(known) if known else f"{type(error).__name__}: {error}"
    record = FailureRecord(
        run=run.name,
        round=round_index,
        stage=stage,
        exit_code=known.exit_code if known else BUG,
        message=excerpt(without_secrets(text)),
    )
    run.storage.put(failure_key(run.stage_folder(round_index, stage)), record.to_bytes())
