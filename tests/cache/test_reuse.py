"""Reads of cache shards: each once while it is held, none that costs more than it spares."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cache.reuse import Stored, find_stored
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.cache.shardreads import BYTES_PER_TOKEN, LEAST_TOKENS, ShardReads, least_tokens
from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from schemas.columns import list_lengths
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.records.shards import Shard
from schemas.scoresignal import Signal
from tests.support.tinytables import K, make_scorer, rollout_table, score_rows

SCORER = make_scorer()
UNIT, UNITS = 64, 4


class CountingReads(Storage):
    """A store that counts the reads of each cache shard."""

    def __init__(self, root: str) -> None:
        """Start at nothing."""
        super().__init__(root)
        self.shards: Counter[str] = Counter()

    def get(self, key: str) -> bytes | None:
        """Count and return an object."""
        self.shards.update([key] if "/data/" in key else [])
        return super().get(key)


def sequences(rows: int, seed: int) -> pa.Table:
    """Return sequences that no other seed has."""
    return rollout_table(rows, seed=seed, vocab=1_000_000)


def publish(cache: ScoreCache, rows: pa.Table) -> Shard:
    digest = fingerprint(rows.column("sequence_digest").to_pylist())
    return cache.publish(digest, score_rows(rows), Origin("old/0000", 1, 0)).commit.shard


def find(cache: ScoreCache, rows: pa.Table, siblings: Sequence[ScoreCache] = ()) -> Stored:
    return find_stored(rows, cache, siblings=siblings, signal=Signal(K), note=print)


def score_round(storage: Storage, units: Sequence[pa.Table]) -> list[int]:
    """Score units as the stage does; return the rows of each that were stored."""
    cache, stored = ScoreCache(storage, SCORER.identity, print), []
    for rows in units:
        assert cache.unit(fingerprint(rows.column("sequence_digest").to_pylist())) is None
        stored.append(find(cache, rows).scores.num_rows)
        publish(cache, rows)
    return stored


def tokens_of(rows: pa.Table) -> int:
    lengths = list_lengths(rows, "prompt_ids") + list_lengths(rows, "response_ids")
    return int(lengths.sum())


# --- a round ---


@pytest.mark.parametrize("further", [0, 10, 100])
def test_a_round_reads_as_many_shards_whatever_else_repeats_by_chance_in_the_root(
    tmp_path: Path, further: int
) -> None:
    units = [sequences(UNIT, seed=unit) for unit in range(UNITS)]
    old = ScoreCache(Storage(str(tmp_path)), SCORER.identity, print)
    half = pa.concat_tables([unit.slice(0, UNIT // 2) for unit in units])
    worth = publish(old, half)
    others = pa.concat_tables([unit.slice(UNIT // 2, UNIT // 2 - 1) for unit in units])
    for number in range(further):  # one row of the round among others that it does not have
        repeat = others.slice(number, 1)
        publish(old, pa.concat_tables([repeat, sequences(7, seed=1000 + number)]))
    storage = CountingReads(str(tmp_path))
    stored = score_round(storage, units)
    assert storage.shards == {worth.key: 1}
    assert stored == [UNIT // 2] * UNITS


@pytest.mark.parametrize("further", [0, 10, 100])
def test_a_bounded_call_reads_the_shards_that_spare_most_however_many_there_are(
    tmp_path: Path, further: int
) -> None:
    rows, old = sequences(2200, seed=0), ScoreCache(Storage(str(tmp_path)), SCORER.identity, print)
    best = [publish(old, rows.slice(start, 60)) for start in (0, 60)]
    for number in range(further):
        repeat = rows.slice(120 + 20 * number, 20)
        assert tokens_of(repeat) >= least_tokens(publish(old, repeat))  # it would pay, too
    storage = CountingReads(str(tmp_path))
    cache = ScoreCache(storage, SCORER.identity, print, most_rows=120)
    assert find(cache, rows).scores.num_rows == 120
    assert storage.shards == {shard.key: 1 for shard in best}
    assert find(cache, rows).scores.num_rows == 120  # from what is held, without another read
    assert storage.shards == {shard.key: 1 for shard in best}


def test_a_repeat_inside_a_round_is_taken_without_a_read(tmp_path: Path) -> None:
    first = sequences(UNIT, seed=0)
    second = pa.concat_tables([first.slice(0, UNIT // 2), sequences(UNIT, seed=1)])
    storage = CountingReads(str(tmp_path))
    assert score_round(storage, [first, second]) == [0, UNIT // 2]
    assert storage.shards == {}


def test_where_everything_is_known_everything_is_taken(tmp_path: Path) -> None:
    rows = sequences(3, seed=0)
    old = ScoreCache(Storage(str(tmp_path)), SCORER.identity, print)
    shards = [publish(old, rows.slice(row, 1)) for row in range(3)]
    assert tokens_of(rows) < least_tokens(shards[0])
    storage = CountingReads(str(tmp_path))
    assert find(ScoreCache(storage, SCORER.identity, print), rows).scores.num_rows == 3
    assert storage.shards == {shard.key: 1 for shard in shards}
    more = pa.concat_tables([rows, sequences(1, seed=1)])
    assert find(ScoreCache(storage, SCORER.identity, print), more).scores.num_rows == 0


def test_siblings_count_among_what_is_known(tmp_path: Path) -> None:
    rows, storage = sequences(2, seed=0), Storage(str(tmp_path))
    twin = replace(SCORER, identity=SCORER.identity.model_copy(update={"dtype": "bfloat16"}))

    def opened() -> list[ScoreCache]:
        return [ScoreCache(storage, one.identity, print) for one in (SCORER, twin)]

    for number, cache in enumerate(opened()):
        publish(cache, rows.slice(number, 1))
    own, other = opened()
    found = find(own, rows, [other])
    assert (found.scores.num_rows, found.sibling_rows) == (2, {twin.key: 1})
    own, other = opened()
    more = find(own, pa.concat_tables([rows, sequences(1, seed=1)]), [other])
    assert (more.scores.num_rows, more.sibling_rows) == (0, {})


def test_the_second_writer_of_a_unit_gets_the_rows_of_the_first(tmp_path: Path) -> None:
    rows = sequences(3, seed=0)
    digest = fingerprint(rows.column("sequence_digest").to_pylist())
    storage, origin = Storage(str(tmp_path)), Origin("run/0000", 1, 0)
    first, second = (ScoreCache(storage, SCORER.identity, print) for _ in range(2))
    mine = first.publish(digest, score_rows(rows, seed=1), origin)
    theirs = second.publish(digest, score_rows(rows, seed=2), origin)
    assert theirs.commit == mine.commit
    logprobs = [found.scores.column("token_logprob").to_pylist() for found in (mine, theirs)]
    assert logprobs[0] == logprobs[1]


# --- one shard ---


def stored_shard(storage: Storage, rows: int, seed: int = 0) -> Shard:
    table = score_rows(sequences(rows, seed=seed))
    data = write_scores(table, SCORER.identity)
    tokens = int(list_lengths(table, "token_logprob").sum())
    shard = content_shard(f"{SCORER.folder}/data", data, rows=rows, tokens=tokens)
    storage.put(shard.key, data)
    return shard


def test_a_read_must_spare_more_tokens_the_larger_its_shard_is() -> None:
    small = Shard(key="k", sha256="0" * 64, bytes=BYTES_PER_TOKEN - 1, rows=1, tokens=1)
    large = small.model_copy(update={"bytes": 64 << 20})
    assert least_tokens(small) == LEAST_TOKENS
    assert least_tokens(large) == LEAST_TOKENS + 1024


def test_what_was_left_alone_before_counts_towards_a_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    shard, reads = stored_shard(storage, 3), ShardReads(storage, SCORER.key)
    assert [reads.pays(shard, 25) for _ in range(3)] == [False, False, True]
    assert not reads.pays(shard, 25)  # what paid for the read does not pay for another one
    reads.rows(shard, np.array([0]))
    assert reads.pays(shard, 1)


def test_a_held_shard_is_not_read_again_and_the_oldest_one_goes(tmp_path: Path) -> None:
    storage = CountingReads(str(tmp_path))
    shards = [stored_shard(storage, 9, seed=seed) for seed in range(3)]
    room = max(a.bytes + b.bytes for a, b in zip(shards, shards[1:] + shards[:1], strict=True))
    reads = ShardReads(storage, SCORER.key, held_bytes=room)
    for number in (0, 1, 0, 2, 0, 1):
        reads.rows(shards[number], np.array([2, 0]))
    assert [storage.shards[shard.key] for shard in shards] == [1, 2, 1]


def test_a_cache_that_may_hold_nothing_reads_each_time(tmp_path: Path) -> None:
    storage = CountingReads(str(tmp_path))
    shard, reads = stored_shard(storage, 3), ShardReads(storage, SCORER.key, held_bytes=0)
    expected = read_scores(storage, shard, scorer=SCORER.key)
    for _ in range(2):
        assert reads.rows(shard, np.array([1])).equals(expected.take(pa.array([1])))
    assert storage.shards[shard.key] == 3


@pytest.mark.parametrize("codec", ["typed-v1", "packed-v1"])
def test_some_rows_are_what_the_whole_shard_says_of_them(tmp_path: Path, codec: str) -> None:
    identity = SCORER.identity.model_copy(update={"codec": codec})
    storage = Storage(str(tmp_path))
    cache = ScoreCache(storage, identity, print)
    rows = sequences(40, seed=0)
    shard = publish(cache, rows)
    whole = read_scores(storage, shard, scorer=identity.key)
    asked = np.array([39, 0, 7, 7])
    found = ShardReads(storage, identity.key).rows(shard, asked)
    assert found.equals(whole.take(pa.array(asked)))
    exact = whole.column("token_logprob").combine_chunks()
    assert exact.equals(score_rows(rows).column("token_logprob").combine_chunks())


def test_damage_anywhere_in_a_shard_is_found_whichever_row_is_asked_for(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    shard = stored_shard(storage, 40)
    data = storage.get(shard.key) or b""
    for place in range(0, len(data), len(data) // 7):
        storage.put(shard.key, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError, match="is corrupt"):
            ShardReads(storage, SCORER.key).rows(shard, np.array([0]))
