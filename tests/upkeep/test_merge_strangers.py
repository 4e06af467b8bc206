"""`opd cache merge` from a stranger's root: all it names is checked, nothing lands elsewhere."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.storage import Storage
from pipeline.upkeep.merge import merge_scorer
from schemas.errors import DataError, IdentityError, OpdError
from schemas.keys import commit_key, renumberings_folder
from schemas.records.scores import RenumberingRecord
from tests.support.caches import store_unit
from tests.support.countedwork import Recorder
from tests.support.forged import forged
from tests.support.tinytables import make_scorer, rollout_table

SCORER = make_scorer()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder of a stranger's root with two units of a scorer."""
    for seed in (0, 1):
        store_unit(Storage(f"{tmp_path}/theirs"), SCORER, rollout_table(3, seed=seed))
    return tmp_path / "theirs"


def merge(root: Path) -> None:
    merge_scorer(Storage(str(root)), mine(root), SCORER.key, Recorder())


def mine(root: Path) -> Storage:
    return Storage(f"{root.parent}/deep/down/mine")


def first_commit(root: Path) -> Path:
    return min((root / SCORER.folder / "commits").iterdir())


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = first_commit(root)
    commit = json.loads(path.read_text())
    edit(commit)
    path.write_bytes(forged(commit))


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_root_that_is_sound_is_taken_whole(root: Path) -> None:
    merge(root)
    theirs = {path.relative_to(root) for path in files(root)}
    taken = {path.relative_to(root.parent / "deep/down/mine") for path in files(root.parent)
             if "deep" in path.parts}  # fmt: skip
    assert theirs <= taken
    assert all(str(path).startswith(f"{SCORER.folder}/") for path in taken)


@pytest.mark.parametrize("key", ["cache/../../../stolen", "/stolen", "runs/x", "cache/x/data/y"])
def test_a_shard_with_the_key_of_another_place_is_not_written(root: Path, key: str) -> None:
    data = b"planted"
    digest = hashlib.sha256(data).hexdigest()
    if not key.startswith("/"):
        planted = root / key
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_bytes(data)
    shard = {"key": key, "sha256": digest, "bytes": len(data)}
    change(root, lambda commit: commit["shard"].update(shard))
    before = files(root.parent)
    with pytest.raises(DataError, match="commits/"):
        merge(root)
    new = files(root.parent) - before
    assert all(SCORER.folder in str(path.relative_to(root.parent)) for path in new)


def test_a_commit_under_the_name_of_another_unit_is_not_taken(root: Path) -> None:
    first, second = sorted((root / SCORER.folder / "commits").iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=f"{second.name} is the commit of unit {first.stem}"):
        merge(root)


def test_a_unit_that_is_renamed_within_and_without_is_not_taken(root: Path) -> None:
    change(root, lambda commit: commit.update(unit="0" * 32))
    first_commit(root).rename(root / commit_key(SCORER.folder, "0" * 32))
    with pytest.raises(DataError, match="holds other sequences than"):
        merge(root)


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda c: c["shard"].update(rows=2), DataError, "has 3 rows, its record says 2"),
        (lambda c: c["shard"].update(tokens=1), DataError, "says 3 rows and 1 tokens"),
        (lambda c: c.update(fingerprint="0" * 32), IdentityError, "is of scorer 0000"),
        (lambda c: c.update(reused_rows=9), DataError, "9 are reused"),
    ],
)
def test_a_commit_that_lies_is_not_taken(
    root: Path, edit: Callable[[dict[str, Any]], None], error: type[OpdError], words: str
) -> None:
    change(root, edit)
    with pytest.raises(error, match=words):
        merge(root)
    assert not mine(root).exists(commit_key(SCORER.folder, first_commit(root).stem))


def test_scores_of_another_scorer_are_not_taken(root: Path) -> None:
    store_unit(Storage(str(root)), SCORER, rollout_table(3, seed=2), whose=make_scorer("other"))
    with pytest.raises(IdentityError, match="holds scores of scorer"):
        merge(root)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("0" * 64, (20).to_bytes(4, "little"), "is corrupt"),
        (hashlib.sha256(b"evil").hexdigest(), b"evil", "is not a renumbering"),
        ("evil", b"evil", "is not a renumbering"),
    ],
)
def test_a_renumbering_that_is_not_what_its_name_says_is_not_taken(
    root: Path, name: str, data: bytes, words: str
) -> None:
    folder = renumberings_folder(SCORER.key)
    Storage(str(root)).put(f"{folder}/{name}", data)
    with pytest.raises(DataError, match=words):
        merge(root)
    assert mine(root).names(folder) == set()


def test_the_renumbering_that_new_shards_use_is_the_one_that_is_pinned(root: Path) -> None:
    theirs, folder = Storage(str(root)), renumberings_folder(SCORER.key)
    tables = {hashlib.sha256(data).hexdigest(): data for data in (words(1), words(2, 1))}
    for name, data in tables.items():
        theirs.put(f"{folder}/{name}", data)
    last = max(tables)
    theirs.put(f"{SCORER.folder}/renumbering.json", RenumberingRecord(sha256=last).to_bytes())
    merge(root)
    assert mine(root).names(folder) == set(tables)
    record = RenumberingRecord.from_bytes(
        mine(root).get(f"{SCORER.folder}/renumbering.json") or b"", where="x"
    )
    assert record.sha256 == last


def words(*seen: int) -> bytes:
    """Return a renumbering of 20 ids whose first numbers are given to some."""
    return b"".join(number.to_bytes(4, "little") for number in (20, *seen))
