"""What tests run in other processes; light to import, for a spawned child starts from nothing."""

import json
import logging
import os
import random
import resource
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import torch
from torch.utils.data import Dataset

from pipeline.store.storage import Storage
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


def run_until_killed(config: str, after: int, before: bool, command: str = "run") -> None:
    """Run all rounds of a configuration and die by SIGKILL at a write to the store.

    Args:
        config: TOML file of the run.
        after: number of the write at which to die, from 1; 0 lives to the end.
        before: die before that write, else right after it.
        command: another command, with its options.
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
    main([*command.split(), "-c", config, "--json"])


def signalled_at_commit(number: int, folder: str, *arguments: str) -> None:
    """Run a command that sends itself a signal at its first commit below a folder."""
    from cli.main import main

    write = Storage._write

    def signalling(self: Storage, key: str, action: Callable[[], None]) -> None:
        write(self, key, action)
        if key.startswith(f"{folder}/commits/"):
            Storage._write = write  # type: ignore[method-assign]
            os.kill(os.getpid(), number)

    Storage._write = signalling  # type: ignore[method-assign] # lets the real writes through
    main([*arguments, "--json"])


def describe_process(word: str) -> None:
    """Print what this process finds about itself, and exit with 3."""
    import numpy as np

    handlers = {number: str(signal.getsignal(number)) for number in signal.valid_signals()}
    found = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "arguments": [word, *sys.argv],
        "threads": len(os.listdir("/proc/self/task")),
        "sockets": [name for name in open_files() if "socket" in name],
        "handlers": handlers,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "random": [uuid.uuid4().hex, random.random(), np.random.rand(), torch.initial_seed()],
        "logging": [str(handler) for handler in logging.getLogger().handlers],
    }
    print(json.dumps(found))
    print("said to stderr", file=sys.stderr)
    sys.exit(3)


def open_files() -> list[str]:
    """Return what the descriptors of this process are."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def sleep_long() -> None:
    """Do nothing until the process is killed."""
    time.sleep(300)


def publish_again_and_again(root: str, number: int) -> int:
    """Publish units whose bytes are often those of units that were given up."""
    from pipeline.store.commit import content_shard, publish
    from schemas.keys import commit_key

    storage, folder, choice = Storage(root), f"runs/r{number}/x", random.Random(number)
    for turn in range(150):
        data = bytes([choice.randrange(4)]) * 9
        shard = content_shard("rollouts", data, rows=1, tokens=1)
        publish(storage, folder, f"u{turn}", shard=shard, data=data, fingerprint="f")
        if choice.random() < 0.8:
            storage.delete(commit_key(folder, f"u{turn}"))
    return 0


def clean_until(root: str, name: str) -> int:
    """Delete what nothing names, however young, again and again until a file appears."""
    from cli.progress import QuietProgress
    from pipeline.upkeep.garbage import delete_garbage, find_garbage

    storage = Storage(root)
    while not storage.exists(name):
        found = find_garbage(storage, limit_s=0.0, progress=QuietProgress())
        todo = found.todo(scorers=True)
        delete_garbage(storage, found, todo, limit_s=0.0, progress=QuietProgress())
    return 0
