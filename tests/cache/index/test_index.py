"""The sequence index against a dictionary: on every store, under compaction, races and kills."""

import uuid

import numpy as np
import pytest

from pipeline.cache.index.compaction import compact
from pipeline.cache.index.index import Index, read_unit
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.fingerprint import sha256
from schemas.keys import commit_key, scorer_folder
from schemas.records.scores import CacheCommit
from schemas.records.shards import Shard
from tests.conftest import ProxyFactory, UseS3
from tests.support.faults import OTHER_DIGIT
from tests.support.servers import S3Account

SCORER = "s"
FOLDER = scorer_folder(SCORER)
ROWS = 5
Place = tuple[str, int]


class Witnessed(Storage):
    """A store of which a copy is kept after each write: what a process leaves that dies there."""

    def __init__(self, root: str) -> None:
        """Begin with the root as it is."""
        super().__init__(root)
        self.left = list[Storage]()

    def put(self, key: str, data: bytes) -> None:
        """Write."""
        super().put(key, data)
        self._keep()

    def create(self, key: str, data: bytes) -> bool:
        """Create."""
        created = super().create(key, data)
        self._keep()
        return created

    def delete(self, key: str) -> None:
        """Delete."""
        super().delete(key)
        self._keep()

    def _keep(self) -> None:
        self.left.append(Storage(f"memory://{uuid.uuid4().hex}"))
        self._copy_folder(FOLDER)

    def _copy_folder(self, folder: str) -> None:
        for name in self.names(folder):
            self.left[-1].put(f"{folder}/{name}", self.get(f"{folder}/{name}") or b"")
        for name in self.folders(folder):
            self._copy_folder(f"{folder}/{name}")


def digests_of(unit: int) -> list[str]:
    """Return the sequences of a unit; the last one is the next unit's first."""
    return [sha256(f"{unit * (ROWS - 1) + row}".encode())[:32] for row in range(ROWS)]


def commit_of(unit: int) -> CacheCommit:
    digest = sha256(f"shard {unit}".encode())
    key = f"{FOLDER}/data/{digest}.parquet"
    return CacheCommit(
        unit=f"u{unit:03d}",
        shard=Shard(key=key, sha256=digest, bytes=1, rows=ROWS, tokens=9),
        fingerprint="f",
        attempt=uuid.uuid4().hex,
        paid_by="run/0000",
        teacher_tokens=1,
        reused_rows=0,
    )


def write_down(storage: Storage, index: Index, unit: int) -> None:
    """Store a unit's shard and write the unit down, as whoever commits it does."""
    storage.put(commit_of(unit).shard.key, b"1")
    index.add(commit_of(unit), digests_of(unit))


def add(storage: Storage, index: Index, units: range, *, growth: int = 12) -> int:
    """Add units one by one, compacting all the time; return how many were added."""
    done = 0
    for unit in units:
        index.refresh()
        write_down(storage, index, unit)
        done += 1
        compact(storage, index, new_units=3, first_level_rows=growth)
    return done


def places(index: Index, digests: list[str]) -> list[Place | None]:
    hits = index.lookup(digests)
    return [
        (hits.shards[shard].key, row) if shard >= 0 else None
        for shard, row in zip(hits.shard.tolist(), hits.row.tolist(), strict=True)
    ]


def expected(units: range) -> dict[str, set[Place]]:
    found: dict[str, set[Place]] = {}
    for unit in units:
        for row, digest in enumerate(digests_of(unit)):
            found.setdefault(digest, set()).add((commit_of(unit).shard.key, row))
    return found


def assert_complete(index: Index, units: range) -> None:
    """Make sure that the index knows exactly the sequences of some units, and where they are."""
    index.refresh()
    known = expected(units)
    foreign = [sha256(f"foreign {n}".encode())[:32] for n in range(20)]
    order = np.random.default_rng(0).permutation(len(known) + len(foreign))
    asked = [[*known, *foreign][i] for i in order]
    for digest, place in zip(asked, places(index, asked), strict=True):
        assert place in known.get(digest, {None})


def objects(storage: Storage) -> int:
    folders = ("new", "parts", "tables", "states")
    return sum(len(storage.names(f"{FOLDER}/index/{folder}")) for folder in folders)


def test_every_sequence_is_found_where_it_is(storage: Storage) -> None:
    index = Index(storage, SCORER)
    assert_complete(index, range(0))
    add(storage, index, range(13))
    assert_complete(index, range(13))
    assert_complete(Index(storage, SCORER), range(13))


def test_sequences_outside_every_run_are_unknown(local_storage: Storage) -> None:
    index = Index(local_storage, SCORER)
    add(local_storage, index, range(3))
    assert index.state.number == 1
    assert places(index, ["0" * 32, "f" * 32]) == [None, None]
    assert places(index, []) == []


def test_the_number_of_objects_does_not_grow_with_history(local_storage: Storage) -> None:
    index = Index(local_storage, SCORER)
    add(local_storage, index, range(120))
    assert objects(local_storage) <= 12
    assert_complete(index, range(120))


def test_an_index_that_others_compact_stays_usable(local_storage: Storage) -> None:
    mine, theirs = Index(local_storage, SCORER), Index(local_storage, SCORER)
    add(local_storage, theirs, range(4))
    mine.refresh()
    add(local_storage, theirs, range(4, 40))
    assert None not in places(mine, list(expected(range(4))))


def test_a_kill_at_any_write_loses_no_sequence_that_was_added() -> None:
    mortal, added = Witnessed(f"memory://{uuid.uuid4().hex}"), list[int]()
    for unit in range(14):
        add(mortal, Index(mortal, SCORER), range(unit, unit + 1))
        added += [unit] * (len(mortal.left) - len(added))
    assert len(added) > 60
    for storage, done in zip(mortal.left, added, strict=True):
        index = Index(storage, SCORER)
        index.refresh()
        assert None not in places(index, list(expected(range(done))))
        add(storage, index, range(done, 17))
        assert_complete(index, range(17))


def test_of_two_that_compact_at_once_one_wins_and_nothing_is_lost(local_storage: Storage) -> None:
    class Rival(Storage):
        """A store in which another process compacts just before the next state is created."""

        def create(self, key: str, data: bytes) -> bool:
            if "/states/" in key and not self.done:
                self.done = True
                other = Index(local_storage, SCORER)
                other.refresh()
                compact(local_storage, other, new_units=3, first_level_rows=12)
            return super().create(key, data)

        done = False

    for unit in range(3):
        write_down(local_storage, Index(local_storage, SCORER), unit)
    rival = Rival(local_storage.root)
    index = Index(rival, SCORER)
    index.refresh()
    assert not compact(rival, index, new_units=3, first_level_rows=12)
    assert_complete(index, range(3))
    assert objects(local_storage) == 3


def test_compaction_commits_what_a_killed_process_left(local_storage: Storage) -> None:
    index = Index(local_storage, SCORER)
    add(local_storage, index, range(3))
    for unit in range(3):
        data = local_storage.get(commit_key(FOLDER, f"u{unit:03d}"))
        assert data is not None
        assert CacheCommit.from_bytes(data, where="").shard == commit_of(unit).shard


def test_the_first_writer_of_a_unit_is_the_one_that_counts(local_storage: Storage) -> None:
    first = Index(local_storage, SCORER).add(commit_of(0), digests_of(0))
    assert Index(local_storage, SCORER).add(commit_of(0), digests_of(0)) == first


def test_a_damaged_object_is_named(local_storage: Storage) -> None:
    Index(local_storage, SCORER).add(commit_of(0), digests_of(0))
    key = f"{FOLDER}/index/new/u000"
    local_storage.put(key, (local_storage.get(key) or b"")[:-3])
    with pytest.raises(DataError, match="new/u000 is damaged"):
        Index(local_storage, SCORER).refresh()


def test_an_entry_that_comes_changed_is_read_again_and_not_mended(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)))
    commit = commit_of(0)
    Index(storage, SCORER).add(commit, digests_of(0))
    key = f"{FOLDER}/index/new/{commit.unit}"
    assert read_unit(storage, key)
    proxy.force(OTHER_DIGIT, method="GET")
    unit = read_unit(storage, key)
    assert unit is not None and unit.commit == commit
    proxy.force(OTHER_DIGIT, method="GET", times=2)
    with pytest.raises(DataError, match=r"is damaged.*its own digest.*No score is lost"):
        read_unit(storage, key)
    assert proxy.counts[OTHER_DIGIT] == 3
