"""Small JSON records in the store: read, found, created once, read many at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.store.storage import Storage
from schemas.errors import DataError, IdentityError
from schemas.records.record import Record

R = TypeVar("R", bound=Record)


def check_fingerprint(storage: Storage, key: str, found: str, expected: str) -> None:
    """Make sure that a stored object belongs to this work.

    Raises:
        IdentityError: it does not.
    """
    if found != expected:
        raise IdentityError(
            f"{storage.url(key)} was made by other work: found fingerprint {found}, expected "
            f"{expected}. The configuration, the prompts or the model changed since; undo that, "
            "or start a new run under another run.name"
        )


def read_record(storage: Storage, key: str, kind: type[R]) -> R:
    """Return a record that must be there.

    Raises:
        DataError: it is missing or damaged.
    """
    record = find_record(storage, key, kind)
    if record is None:
        raise DataError(f"{storage.url(key)} is missing: run the stage that makes it first")
    return record


def find_record(storage: Storage, key: str, kind: type[R]) -> R | None:
    """Return a record, or None where there is none.

    Raises:
        DataError: it is damaged, or is of something else than its key says.
    """
    record = storage.read_checked(key, lambda data: kind.from_bytes(data, where=storage.url(key)))
    if record is not None:
        check_place(storage, key, record)
    return record


def check_place(storage: Storage, key: str, record: Record) -> None:
    """Make sure that a record is of what its key says.

    Raises:
        DataError: it is of another unit, round, run, teacher or scorer.
    """
    if found := record.misplaced(key):
        raise DataError(
            f"{storage.url(key)} is {found}: it was copied, renamed or changed. Restore the "
            "object; or delete it, and run the command that makes it again"
        )


def create_record(storage: Storage, key: str, record: R) -> R:
    """Create a record, or return the one that stands when another writer was first.

    Raises:
        DataError: the record is one that readers refuse, or the one that stands is.
    """
    check_place(storage, key, record)
    if storage.create(key, record.to_bytes()):
        return record
    return read_record(storage, key, type(record))


READERS = 16
"""Small objects that are read at once."""


def read_records(
    storage: Storage, keys: Sequence[str], kind: type[R]
) -> Iterator[tuple[str, R | DataError]]:
    """Yield each key with its record, or with what is wrong; those that are gone are left out."""

    def read(key: str) -> R | DataError | None:
        try:
            return find_record(storage, key, kind)
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), 64 * READERS):
            some = keys[start : start + 64 * READERS]
            for key, found in zip(some, pool.map(read, some), strict=True):
                if found is not None:
                    yield key, found
