"""Bad caches: damaged indexes, odd records, and a scorer that has a name."""

import json
import shutil
from pathlib import Path

from pipeline.cache.index.compaction import compact
from pipeline.cache.index.index import Index
from pipeline.store.storage import Storage
from tests.support.caches import scorer_of
from tests.support.forged import forged


def named(folder: Path) -> None:
    """Give the scorer the name `mine`."""
    scorer = scorer_of(_store(folder))
    _write(folder, "scorers/mine.json", json.dumps({"schema_version": 1, "scorer": scorer}))


def cut_part(folder: Path) -> None:
    """Cut a part of a merged index."""
    _forget_round(folder)
    path = _only(folder, "parts")
    path.write_bytes(path.read_bytes()[:-5])


def no_part(folder: Path) -> None:
    """Delete a part of a merged index."""
    _forget_round(folder)
    _only(folder, "parts").unlink()


def no_table(folder: Path) -> None:
    """Delete the table of a merged index."""
    _forget_round(folder)
    _only(folder, "tables").unlink()


def empty_state(folder: Path) -> None:
    """Empty the state of a merged index."""
    _forget_round(folder)
    _only(folder, "states").write_bytes(b"")


def huge_state(folder: Path) -> None:
    """Write numbers without end into the state of a merged index."""
    _forget_round(folder)
    path = _only(folder, "states")
    state = json.loads(path.read_text())
    state["runs"][0]["parts"][0] |= {"rows": 10**18, "last": 10**300}
    path.write_bytes(forged(state))


def foreign_states(folder: Path) -> None:
    """Put names that are not ours among the states of a merged index."""
    _forget_round(folder)
    states = _only(folder, "states").parent
    for name in ("readme.txt", "1.json", "999999999999.json", "-00000000001.json"):
        (states / name).write_bytes(b"?")


def flipped_new(folder: Path) -> None:
    """Flip a byte in an entry of an index that is not merged yet."""
    _forget_round(folder, merged=False)
    path = min(folder.glob("store/cache/*/index/new/*"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0x40]))


def cut_shard(folder: Path) -> None:
    """Cut a shard of scores."""
    path = min(folder.glob("store/cache/*/data/*"))
    path.write_bytes(path.read_bytes()[:-5])


def odd_pin(folder: Path) -> None:
    """Put a pin that says nothing for the scorer."""
    _write(folder, f"pins/{scorer_of(_store(folder))}.json", "?")


def odd_commit(folder: Path) -> None:
    """Write something else into a commit of the cache."""
    min(folder.glob("store/cache/*/commits/*")).write_text("?")


def odd_sweep(folder: Path) -> None:
    """Announce a clean-up by something that is no record, in a root with work to do."""
    _forget_round(folder)
    _write(folder, "gc/sweep.json", "{")


def _forget_round(folder: Path, *, merged: bool = True) -> None:
    """Make the second round's scores such that they must be looked up row by row."""
    storage = _store(folder)
    if merged:
        index = Index(storage, scorer_of(storage))
        index.refresh()
        assert compact(storage, index, new_units=1)
    shutil.rmtree(folder / "store/runs/tiny/rounds/0001/score")
    shutil.rmtree(folder / "store/runs/tiny/rounds/0001/train")
    for path in sorted(folder.glob("store/cache/*/commits/*"))[::2]:
        path.unlink()


def _only(folder: Path, part: str) -> Path:
    (found,) = folder.glob(f"store/cache/*/index/{part}/*")
    return found


def _store(folder: Path) -> Storage:
    return Storage(str(folder / "store"))


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / "store" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
