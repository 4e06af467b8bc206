"""What tests run in other processes; light to import, for a spawned child starts from nothing."""

import os
import resource
import signal
from collections.abc import Callable

from torch.utils.data import Dataset

from pipeline.storage import Storage
from schemas.errors import StorageError

FILE_LIMIT_BYTES = 1 << 16


class Objects(Dataset[bytes]):
    """Objects of a store, read by DataLoader workers."""

    def __init__(self, storage: Storage, size: int) -> None:
        """Name the store and the number of its objects `item/<index>`."""
        self.storage, self.size = storage, size

    def __len__(self) -> int:
        """Return the number of objects."""
        return self.size

    def __getitem__(self, index: int) -> bytes:
        """Return the bytes of an object."""
        data = self.storage.get(f"item/{index}")
        assert data is not None
        return data


def create(storage: Storage, key: str, data: bytes) -> bool:
    """Return whether this process created an object."""
    return storage.create(key, data)


def write_past_the_limit(storage: Storage) -> str:
    """Return the message of the error that a write above the process's file limit raises."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))
    try:
        storage.put("folder/large", bytes(FILE_LIMIT_BYTES * 2))
    except StorageError as error:
        return str(error)
    return "no error"


def run_until_killed(config: str, after: int, before: bool) -> None:
    """Run all rounds of a configuration and die by SIGKILL at a write to the store.

    Args:
        config: TOML file of the run.
        after: number of the write at which to die, from 1; 0 lives to the end.
        before: die before that write, else right after it.
    """
    from cli.main import main

    write = Storage._write
    count = 0

    def counted(self: Storage, key: str, action: Callable[[], None]) -> None:
        nonlocal count
        count += 1
        if count == after and before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            write(self, key, action)
        finally:  # also where a create found the object
            if count == after:
                os.kill(os.getpid(), signal.SIGKILL)

    Storage._write = counted  # type: ignore[method-assign] # counts the real writes
    main(["run", "-c", config, "--json"])
