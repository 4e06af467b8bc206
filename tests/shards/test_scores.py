"""Score shards come back from their bytes, or are refused by name."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.quickstart.addition import VOCABULARY
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.parquet import write_table
from pipeline.shards.scores import (
    _renumbering,
    decode_scores,
    pinned_renumbering,
    read_scores,
    write_scores,
)
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from schemas.columns import flat_values
from schemas.errors import DataError, IdentityError
from schemas.records.shards import Shard
from tests.support.tinytables import make_scorer, rollout_table, score_rows

K, V = 4, len(VOCABULARY)
SCORER = make_scorer(k=K, vocab=V)


def stored(storage: Storage, table: pa.Table) -> Shard:
    data = write_scores(table, SCORER.identity)
    shard = content_shard("data", data, rows=table.num_rows, tokens=0)
    storage.put(shard.key, data)
    return shard


def test_an_empty_tail_comes_back_as_such(memory: Storage) -> None:
    table = score_rows(rollout_table(2), k=K)
    index = table.schema.get_field_index("tail_logprobs")
    lengths = [len(row) for row in table.column("tail_logprobs").to_pylist()]
    empty = pa.array([[float("-inf")] * n for n in lengths], table.schema.field(index).type)
    table = table.set_column(index, table.schema.field(index), empty)
    back = read_scores(memory, stored(memory, table), scorer=SCORER.key)
    assert back.column("tail_logprobs").to_pylist() == empty.to_pylist()


def test_the_scores_of_another_scorer_are_refused(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K))
    for other in (make_scorer("other", k=K, vocab=V), make_scorer(k=K + 1, vocab=V)):
        with pytest.raises(IdentityError) as caught:
            read_scores(memory, shard, scorer=other.key)
        assert SCORER.key in str(caught.value) and other.key in str(caught.value)
        assert memory.url(shard.key) in str(caught.value)


def test_a_parquet_file_that_is_no_score_shard_is_refused(memory: Storage) -> None:
    data = write_table(rollout_table(2), {})
    shard = content_shard("data", data, rows=2, tokens=0)
    memory.put(shard.key, data)
    with pytest.raises(IdentityError, match="holds scores of scorer None"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_shard_with_another_number_of_rows_than_its_commit_is_refused(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K)).model_copy(update={"rows": 3})
    with pytest.raises(DataError, match="has 2 rows, its record says 3"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_missing_or_corrupt_shard_is_named(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K))
    memory.put(shard.key, (memory.get(shard.key) or b"")[:-1])
    with pytest.raises(DataError, match=f"{shard.key} is corrupt"):
        read_scores(memory, shard, scorer=SCORER.key)
    memory.delete(shard.key)
    with pytest.raises(DataError, match=f"{shard.key} is missing"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_table_with_another_k_than_its_scorer_is_never_written() -> None:
    with pytest.raises(DataError, match="'topk_ids'"):
        write_scores(score_rows(rollout_table(2), k=K - 1), SCORER.identity)


def packed_scorer(name: str = "main") -> Scorer:
    scorer = make_scorer(name, k=K, vocab=V)
    return replace(scorer, identity=scorer.identity.model_copy(update={"codec": "packed-v1"}))


def store_packed(storage: Storage, table: pa.Table, scorer: Scorer) -> Shard:
    renumbering = pinned_renumbering(storage, scorer.identity, table)
    data = write_scores(table, scorer.identity, renumbering=renumbering)
    shard = content_shard("data", data, rows=table.num_rows, tokens=0)
    storage.put(shard.key, data)
    return shard


def test_packed_scores_come_back_by_the_first_units_renumbering(memory: Storage) -> None:
    scorer = packed_scorer()
    for seed in range(3):
        table = score_rows(rollout_table(4, seed=seed), k=K, seed=seed)
        back = read_scores(memory, store_packed(memory, table, scorer), scorer=scorer.key)
        exact = ["sequence_digest", "topk_ids", "token_rank", "token_logprob"]
        assert back.select(exact).equals(table.select(exact))
    assert len(memory.names(f"{scorer.folder}/renumbering")) == 1


def test_a_missing_or_corrupt_renumbering_is_named(memory: Storage) -> None:
    for spoil, message in ((lambda b: None, "is missing"), (lambda b: b[:-4], "is corrupt")):
        scorer = packed_scorer(message)
        shard = store_packed(memory, score_rows(rollout_table(4), k=K), scorer)
        folder = f"{scorer.folder}/renumbering"
        key = f"{folder}/{memory.names(folder).pop()}"
        data = spoil(memory.get(key) or b"")
        memory.delete(key) if data is None else memory.put(key, data)
        _renumbering.cache_clear()
        with pytest.raises(DataError, match=f"{key} {message}"):
            read_scores(memory, shard, scorer=scorer.key)


def test_open_scores_have_no_renumbering(memory: Storage) -> None:
    assert pinned_renumbering(memory, SCORER.identity, score_rows(rollout_table(2), k=K)) is None


def test_a_shard_of_a_newer_codec_is_named(memory: Storage) -> None:
    table = score_rows(rollout_table(2), k=K)
    data = write_table(table, {"scorer": SCORER.key, "codec": "packed-v9"})
    shard = content_shard("data", data, rows=2, tokens=0)
    memory.put(shard.key, data)
    with pytest.raises(DataError, match="codec 'packed-v9'.*install a newer opd"):
        read_scores(memory, shard, scorer=SCORER.key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": None}, "the metadata of .* is not a ScorerIdentity"),
        ({"identity": {"k": 1}}, "the metadata of .* is not a ScorerIdentity"),
        ({"renumbering": ["x"]}, "names the renumbering .*, expected a sha256"),
        ({"renumbering": "../x"}, "names the renumbering '../x', expected a sha256"),
        ({"codec": ["x"]}, r"is stored by codec \['x'\]"),
    ],
)
def test_metadata_that_names_nothing_possible_is_refused(
    memory: Storage, changes: dict[str, Any], words: str
) -> None:
    identity = SCORER.identity.model_dump(mode="json")
    record = {"scorer": SCORER.key, "identity": identity, "codec": "typed-v1"} | changes
    data = write_table(score_rows(rollout_table(2), k=K), record)
    shard = content_shard("data", data, rows=2, tokens=0)
    memory.put(shard.key, data)
    with pytest.raises(DataError, match=words):
        read_scores(memory, shard, scorer=SCORER.key)


def test_the_renumbering_of_another_vocabulary_is_refused(memory: Storage) -> None:
    table = score_rows(rollout_table(2), k=K)
    learnt = Renumbering.learn(flat_values(table, "topk_ids"), vocab_size=V + 1)
    identity = SCORER.identity.model_copy(update={"codec": "packed-v1"})
    data = write_scores(table, identity, renumbering=learnt)
    with pytest.raises(DataError, match=f"x has {V} ids, the renumbering that it names {V + 1}"):
        decode_scores(data, renumbering=learnt, where="x")
