"""Keys of strangers: no verb of a store leaves the root, and no listing hands on a strange name."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.records.shards import Shard
from tests.schemas.test_forms import UNCLEAN

VERBS: dict[str, Callable[[Storage, str, Path], object]] = {
    "get": lambda s, key, _: s.get(key),
    "exists": lambda s, key, _: s.exists(key),
    "read_ranges": lambda s, key, _: s.read_ranges([(key, 0, 1)]),
    "put": lambda s, key, _: s.put(key, b"x"),
    "create": lambda s, key, _: s.create(key, b"x"),
    "version": lambda s, key, _: s.version(key),
    "upload": lambda s, key, path: s.upload(key, path),
    "delete": lambda s, key, _: s.delete(key),
    "read_shard": lambda s, key, _: s.read_shard(unchecked(key)),
    "download": lambda s, key, path: s.download(unchecked(key), path),
}


def unchecked(key: str) -> Shard:
    """Return a shard that no record would hold."""
    return Shard.model_construct(key=key, sha256="0" * 64, bytes=1, rows=0, tokens=0)


def below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("key", [key for key in UNCLEAN if key != ""], ids=ascii)
def test_no_verb_takes_a_strange_key(verb: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "store").mkdir()
    before = below(tmp_path)
    with pytest.raises(DataError, match="is no key of") as caught:
        VERBS[verb](Storage(f"{tmp_path}/store"), key, tmp_path / "a")
    assert str(caught.value).isprintable()
    assert below(tmp_path) == before


@pytest.mark.parametrize("folder", ["..", "a/..", "/etc", "a//b"])
def test_no_folder_outside_the_root_is_listed(folder: str, local_storage: Storage) -> None:
    for listing in (local_storage.names, local_storage.folders):
        with pytest.raises(DataError, match="is no key of"):
            listing(folder)


def test_names_that_no_key_has_are_not_listed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in (b"fine.json", b"a\nb.json", b"a\\b.json", b"\xff.json", b"\x1b[2J.json"):
        with open(os.fsencode(folder) + b"/" + name, "wb"):
            pass
        os.mkdir(os.fsencode(folder) + b"/f" + name)
    storage = Storage(str(tmp_path))
    assert storage.names("a") == {"fine.json"}
    assert storage.folders("a") == {"ffine.json"}


def test_the_root_is_listed_by_an_empty_name(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("one", b"1")
    storage.put("folder/two", b"2")
    assert (storage.names(""), storage.folders("")) == ({"one"}, {"folder"})


def test_a_file_that_is_longer_than_its_record_says_is_not_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)  # a hole: reading it would take all memory
    with pytest.raises(DataError, match=f"huge is corrupt: found {1 << 42} bytes, expected 1"):
        storage.read_shard(unchecked("huge"))
