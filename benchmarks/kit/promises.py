"""What must be true of a root after any disturbance, checked object by object from outside.

Promises: every check reads the store itself, past proxies and past what the runs printed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.store.storage import Storage
from schemas.fingerprint import sha256
from tests.support.runs import keys_below, snapshot

Records = dict[str, Any]
"""JSON objects of a root by key."""


def broken_promises(
    storage: Storage, quiet: Records, *, done_again: Callable[[], Records], scratch: Path
) -> dict[str, list[str]]:
    """Return what does not hold of a root whose run has ended, by promise; empty lists are good.

    Args:
        storage: the root.
        quiet: what an undisturbed run of the same configuration published.
        done_again: runs the finished run once more and returns what that printed.
        scratch: the folder for temporary files that all processes used.
    """
    records = dict(_records(storage))
    shards = [shard for record in records.values() for shard in _shards(record)]
    commits = [record for key, record in records.items() if "/commits/" in key]
    again = done_again()
    return {
        "manifests equal those of a quiet run": _differences(quiet, snapshot(storage, "runs")),
        "nothing that a record names is lost or torn": list(_damaged(storage, shards)),
        "no unit is committed under another's name": [
            key
            for key, record in records.items()
            if "/commits/" in key and record.get("unit") not in (None, Path(key).stem)
        ],
        "no manifest names a unit twice": [
            key for key, record in records.items() if _twice(record.get("units"))
        ],
        "no score is paid twice": _paid_twice(commits),
        "a finished run has nothing left to do": [
            f"{name} = {again[name]}" for name in ("units", "teacher_tokens") if again[name]
        ],
        "temporary folders of killed processes are gone": [
            path.name for path in scratch.glob("opd.*")
        ],
    }


def _records(storage: Storage) -> Iterator[tuple[str, Any]]:
    for folder in ("runs", "cache"):
        for key in keys_below(storage, folder):
            if (
                key.endswith(".json")
                and "/checkpoints/" not in key
                or key.endswith("manifest.json")
            ):
                yield key, json.loads(storage.get(key) or b"null")


def _shards(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every shard that a JSON value names."""
    if isinstance(value, dict):
        if {"key", "sha256", "bytes"} <= set(value):
            yield value
        for part in value.values():
            yield from _shards(part)
    elif isinstance(value, list):
        for part in value:
            yield from _shards(part)


def _damaged(storage: Storage, shards: list[dict[str, Any]]) -> Iterator[str]:
    for key, digest in sorted({(shard["key"], shard["sha256"]) for shard in shards}):
        data = storage.get(key)
        if data is None and "/state/" in key:
            continue  # states of earlier rounds are dropped on purpose; their records stay
        if data is None or sha256(data) != digest:
            yield f"{key} is {'missing' if data is None else 'torn'}"


def _differences(quiet: Records, loud: Records) -> list[str]:
    return [key for key in sorted({*quiet, *loud}) if quiet.get(key) != loud.get(key)]


def _twice(units: Any) -> bool:
    if not isinstance(units, list):
        return False
    names = Counter(unit["unit"] for unit in units)
    return any(count > 1 for count in names.values())


def _paid_twice(commits: list[Any]) -> list[str]:
    """Return the units of scores that two commits of one scorer claim to have paid for."""
    paid = Counter(
        (commit["fingerprint"], commit["unit"])
        for commit in commits
        if commit.get("teacher_tokens")
    )
    return [f"{scorer}: {unit}" for (scorer, unit), count in paid.items() if count > 1]
