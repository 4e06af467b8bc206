"""Clean-up beside writers and readers: every order of their requests, and nothing is lost."""

import json
import uuid
from contextlib import suppress

import pytest

from cli.progress import QuietProgress
from pipeline.cache.holds import held
from pipeline.cache.index.index import Index
from pipeline.cache.scorecache import Origin, ScoreCache, adopt_unit
from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.commit import content_shard, publish, read_commit
from pipeline.store.records import create_record
from pipeline.store.storage import Storage
from pipeline.store.sweeps import forget_lost
from pipeline.teachers.teacher import pin_scorer
from pipeline.upkeep.garbage import delete_garbage, find_garbage
from schemas.errors import StorageError
from schemas.fingerprint import fingerprint
from schemas.keys import commit_key, lease_key, scorer_key
from schemas.records.scores import CacheCommit, ScoreCommit
from tests.support.caches import store_unit
from tests.support.interleaved import every_order
from tests.support.minimal import minimal_run
from tests.support.tinytables import make_scorer, rollout_table, score_rows

ROUND = "runs/demo/rounds/0000/rollout"
DATA = b"the same bytes as before"
SHARD = content_shard("rollouts", DATA, rows=1, tokens=1)
SCORER = make_scorer()
ROWS = rollout_table(3)
DIGESTS = ROWS.column("sequence_digest").to_pylist()
UNIT = fingerprint(DIGESTS)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make requests of a process come one by one, and waiting cost nothing."""
    for module in ("store.records", "store.sweeps", "upkeep.garbage", "upkeep.references"):
        monkeypatch.setattr(f"pipeline.{module}.READERS", 1)
    monkeypatch.setattr("pipeline.store.sweeps.POLL_S", 0.0)


def new_root() -> str:
    return f"memory://{uuid.uuid4().hex}"


def clean_up(storage: Storage, *, scorers: bool = False) -> None:
    """Do what `opd cache gc --delete --older-than 0` does."""
    found = find_garbage(storage, limit_s=0.0, progress=QuietProgress())
    todo = found.todo(scorers=scorers)
    delete_garbage(storage, found, todo, limit_s=0.0, progress=QuietProgress())


def sample(storage: Storage) -> None:
    """Publish a rollout unit."""
    publish(storage, ROUND, "u0", shard=SHARD, data=DATA, fingerprint="f")


def with_orphan(key: str, data: bytes) -> str:
    """Return a root in which a killed writer left a shard that nothing names."""
    root = new_root()
    for folder in ("runs/demo/x", f"{ROUND}/commits"):
        Storage(root).put(f"{folder}/lasting", b"")
    Storage(root).put(key, data)
    return root


def test_a_rollout_unit_survives_clean_up_whatever_the_order() -> None:
    orders = 0
    for root in every_order(lambda: with_orphan(SHARD.key, DATA), [sample, clean_up]):
        storage = Storage(root)
        assert storage.read_shard(read_commit(storage, ROUND, "u0", fingerprint="f").shard) == DATA
        assert storage.names("gc") == set()
        orders += 1
    assert orders > 15


@pytest.mark.parametrize("kill_at", range(3))
def test_a_killed_writer_of_a_rollout_unit_finds_out_what_it_lost(kill_at: int) -> None:
    for root in every_order(
        lambda: with_orphan(SHARD.key, DATA), [sample, clean_up], kill_at=kill_at
    ):
        storage = Storage(root)
        if storage.exists(commit_key(ROUND, "u0")):
            commit = read_commit(storage, ROUND, "u0", fingerprint="f")
            forget_lost(storage, ROUND, [commit])
        sample(storage)
        assert storage.exists(read_commit(storage, ROUND, "u0", fingerprint="f").shard.key)


def scored() -> tuple[CacheCommit, bytes]:
    """Return the commit and the bytes of a unit of random scores."""
    data = write_scores(score_rows(ROWS), SCORER.identity)
    shard = content_shard(f"{SCORER.folder}/data", data, rows=3, tokens=1)
    commit = CacheCommit(
        unit=UNIT,
        shard=shard,
        fingerprint=SCORER.key,
        attempt="a",
        paid_by="demo/0000",
        teacher_tokens=1,
    )
    return commit, data


COMMIT, SCORES = scored()


def score(storage: Storage) -> None:
    """Publish a unit of scores."""
    adopt_unit(storage, Index(storage, SCORER.key), COMMIT, SCORES, DIGESTS)


def used_root() -> str:
    """Return a root with a scorer in use, and a shard in it that nothing names."""
    root = with_orphan(COMMIT.shard.key, SCORES)
    Storage(root).put("runs/demo/x/use.json", json.dumps(scorer_key(SCORER.key)).encode())
    return root


@pytest.mark.parametrize("kill_at", [None, 1, 3])
def test_a_unit_of_scores_survives_clean_up_whatever_the_order(kill_at: int | None) -> None:
    for root in every_order(used_root, [score, clean_up], kill_at=kill_at):
        storage = Storage(root)
        cache = ScoreCache(storage, SCORER.identity, print)
        commit = cache.unit(UNIT)
        if kill_at is None:
            assert commit is not None
        if commit is None:
            commit = cache.publish(UNIT, score_rows(ROWS), Origin("demo/0000", 1, 0)).commit
        assert read_scores(storage, commit.shard, scorer=SCORER.key).num_rows == 3


def stored_root() -> str:
    """Return a root with a scorer that no run uses any more."""
    root = new_root()
    for folder in ("teachers", "rounds/0000/score/main/commits"):
        Storage(root).put(f"runs/demo/{folder}/lasting", b"")
    store_unit(Storage(root), SCORER, ROWS)
    return root


def take(storage: Storage) -> None:
    """Take a unit of stored scores for a run, or make it where there is none."""
    with held(storage, [SCORER.key]) as hold:
        _take(storage)
        assert not hold.is_lost()


def _take(storage: Storage) -> None:
    pin_scorer(minimal_run(storage), SCORER)
    cache = ScoreCache(storage, SCORER.identity, print)
    commit = cache.unit(UNIT)
    if commit is None:
        score(storage)
        commit = COMMIT
    read_scores(storage, commit.shard, scorer=SCORER.key)
    words = json.dumps({"shard": commit.shard.key}).encode()
    storage.create("runs/demo/rounds/0000/score/main/commits/u0.json", words)


def clean_scorers(storage: Storage) -> None:
    clean_up(storage, scorers=True)


def test_scores_that_a_run_takes_survive_the_clean_up_of_unused_scorers() -> None:
    for root in every_order(stored_root, [take, clean_scorers]):
        storage = Storage(root)
        words = storage.get("runs/demo/rounds/0000/score/main/commits/u0.json")
        assert words is not None
        assert storage.exists(json.loads(words)["shard"])
        assert storage.exists(scorer_key(SCORER.key))
        assert ScoreCache(storage, SCORER.identity, print).unit(UNIT) is not None


def hold(storage: Storage) -> None:
    """Add a unit to a scorer that no run uses, as `opd cache merge` does."""
    with held(storage, [SCORER.key]):
        create_record(storage, scorer_key(SCORER.key), SCORER.identity)
        if ScoreCache(storage, SCORER.identity, print).unit(UNIT) is None:
            score(storage)


def test_a_scorer_that_a_command_adds_to_is_kept_or_deleted_whole() -> None:
    kept = []
    for root in every_order(stored_root, [hold, clean_scorers]):
        storage = Storage(root)
        commit = ScoreCache(storage, SCORER.identity, print).unit(UNIT)
        assert (commit is not None) == storage.exists(scorer_key(SCORER.key))
        if commit is not None:
            assert read_scores(storage, commit.shard, scorer=SCORER.key).num_rows == 3
        kept.append(commit is not None)
    assert set(kept) == {True, False}


def test_of_two_clean_ups_one_deletes_and_the_other_says_so() -> None:
    def polite(storage: Storage) -> None:
        with suppress(StorageError):
            clean_up(storage)

    for root in every_order(lambda: with_orphan(SHARD.key, DATA), [polite, polite]):
        assert not Storage(root).exists(SHARD.key)


def test_a_run_whose_hold_was_taken_for_dead_forgets_the_units_that_it_lost(
    memory: Storage,
) -> None:
    store_unit(memory, SCORER, ROWS)
    folder = "runs/demo/rounds/0000/score/main"
    commit = ScoreCommit(
        unit="u0",
        shard=COMMIT.shard,
        fingerprint="f",
        reused_rows=3,
        teacher_tokens=0,
        sampled_kl=0.0,
        sampled_tokens=1,
    )
    create_record(memory, commit_key(folder, "u0"), commit)
    with held(memory, [SCORER.key]) as hold:
        hold.check(folder, [commit])
        memory.delete(COMMIT.shard.key)
        hold.check(folder, [commit])  # nobody could delete it but by hand
        memory.delete(lease_key(SCORER.folder, hold.name))
        with pytest.raises(StorageError, match="1 units were deleted"):
            hold.check(folder, [commit])
    assert memory.names(f"{folder}/commits") == set()
