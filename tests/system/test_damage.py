"""Damaged and foreign scores: named with their exit code by training and by verification alike.

Where it matters, every digest is made to agree again: only what is inside tells.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.fingerprint import sha256
from schemas.tables import SCHEMA_VERSION
from tests.support.forged import forged
from tests.support.rounds import ROUND, forget_training, score_shards
from tests.support.runs import Cli

Damage = Callable[[Path], str]
"""Damages the first score shard of a run's round 0; returns what an error must name."""


def metadata_changed(path: Path, **changes: object) -> bytes:
    """Return the bytes of a shard whose record in the Parquet metadata says something else."""
    table = pq.read_table(path)
    (key,) = [k for k in table.schema.metadata if b"schema_version" in table.schema.metadata[k]]
    record = json.loads(table.schema.metadata[key]) | changes
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({key: json.dumps(record)}), sink)
    return bytes(sink.getvalue())


def put_in_place(folder: Path, old: Path, data: bytes) -> Path:
    """Store a shard and let every record that named the old one name it; return its path."""
    digest = sha256(data)
    new = old.with_name(f"{digest}.parquet")
    new.write_bytes(data)
    for path in (folder / "store").rglob("*.json"):
        text = path.read_text()
        if old.stem in text:
            path.write_bytes(forged(_renamed(json.loads(text), old, new, len(data))))
    return new


def _renamed(value: Any, old: Path, new: Path, size: int) -> Any:
    if isinstance(value, list):
        return [_renamed(part, old, new, size) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("sha256") == old.stem:
        key = value["key"].replace(old.name, new.name)
        return {**value, "sha256": new.stem, "key": key, "bytes": size}
    return {name: _renamed(part, old, new, size) for name, part in value.items()}


def newer_shard(folder: Path) -> str:
    shard = score_shards(folder)[0]
    data = metadata_changed(shard, schema_version=SCHEMA_VERSION + 3)
    return put_in_place(folder, shard, data).name


def newer_record(folder: Path) -> str:
    """Make the round's manifest and the scorer's commits those of a newer opd."""
    records = [folder / "store" / ROUND / "score/main/manifest.json"]
    records += (folder / "store").glob("cache/*/commits/*.json")
    for path in records:
        record = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 3}
        path.write_bytes(forged(record))
    return f"schema version {SCHEMA_VERSION + 3}"


def foreign_shard(folder: Path) -> str:
    shard = score_shards(folder)[0]
    return put_in_place(folder, shard, metadata_changed(shard, scorer="f" * 32)).name


def swapped_shard(folder: Path) -> str:
    """Let the records of the first unit name the second one's shard."""
    first, second = score_shards(folder)[:2]
    return put_in_place(folder, first, second.read_bytes()).name


def swapped_bytes(folder: Path) -> str:
    first, second = score_shards(folder)[:2]
    first.write_bytes(second.read_bytes())
    return first.name


def truncated_shard(folder: Path) -> str:
    shard = score_shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    return shard.name


def short_parquet(folder: Path) -> str:
    """Put a shard without its last row in place: whole Parquet, all digests right."""
    shard = score_shards(folder)[0]
    table = pq.read_table(shard)
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, table.num_rows - 1), sink)
    return put_in_place(folder, shard, bytes(sink.getvalue())).name


def missing_object(folder: Path) -> str:
    shard = score_shards(folder)[0]
    shard.unlink()
    return shard.name


CASES: list[tuple[Damage, int]] = [
    (newer_shard, 4),
    (newer_record, 4),
    (foreign_shard, 3),
    (swapped_shard, 4),
    (swapped_bytes, 4),
    (truncated_shard, 4),
    (short_parquet, 4),
    (missing_object, 4),
]
EVERY_CASE = pytest.mark.parametrize(
    ("damage", "code"), CASES, ids=[damage.__name__ for damage, _ in CASES]
)


@EVERY_CASE
def test_training_stops_and_names_it(damage: Damage, code: int, run_copy: Path, cli: Cli) -> None:
    forget_training(run_copy)
    name = damage(run_copy)
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "0", "--json")
    assert outcome.code == code, outcome.stderr
    assert name in outcome.stderr
    assert outcome.result["exit_code"] == code
    assert "Traceback" not in outcome.stderr
    assert not (run_copy / "store/runs/tiny/checkpoints/0001").exists()


@EVERY_CASE
def test_verification_goes_on_and_names_it(
    damage: Damage, code: int, run_copy: Path, cli: Cli
) -> None:
    name = damage(run_copy)
    outcome = cli("cache", "verify", "-c", run_copy / "run.toml", "--json")
    assert outcome.code == code, outcome.stderr
    (found,) = outcome.result["scorers"]
    assert found["checked"] == 8
    faults = [fault for kind in ("damaged", "missing", "foreign") for fault in found[kind]]
    assert any(name in fault["key"] + fault["reason"] for fault in faults)
    assert bool(found["foreign"]) is (code == 3)
    assert bool(found["missing"]) is (damage is missing_object)
    shown = cli("cache", "verify", "-c", run_copy / "run.toml")
    assert shown.code == code
    assert name in shown.stdout
