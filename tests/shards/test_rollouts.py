"""Rollout shards: a student's own sample comes back, or is not there at all."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.shards.parquet import read_table, write_table
from pipeline.shards.rollouts import OWN_SAMPLE, read_rollout, write_rollout
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from schemas.columns import list_lengths
from schemas.errors import DataError
from schemas.tables import ROLLOUT
from tests.support.tinytables import rollout_table

IDS, LOGPROBS, COUNT = OWN_SAMPLE


def sampled(places: int = 4) -> pa.Table:
    """Return rollout rows whose tokens have an own sample each."""
    table = rollout_table(3)
    lengths = list_lengths(table, "response_ids").tolist()
    table = changed(table, IDS, [list(range(places)) * n for n in lengths])
    return changed(table, LOGPROBS, [[-1.0] * places * n for n in lengths])


def changed(table: pa.Table, name: str, rows: list[Any]) -> pa.Table:
    index = table.column_names.index(name)
    return table.set_column(index, ROLLOUT.field(name), pa.array(rows, ROLLOUT.field(name).type))


def back(storage: Storage, data: bytes) -> pa.Table:
    shard = content_shard("rollouts", data, rows=3, tokens=0)
    storage.put(shard.key, data)
    return read_rollout(storage, shard)


def test_a_students_own_sample_comes_back(memory: Storage) -> None:
    table = sampled()
    assert back(memory, write_rollout(table, {}, where="x")).equals(table)


def test_without_one_a_shard_is_what_it_was_before_there_were_any(memory: Storage) -> None:
    table = rollout_table(3)
    data = write_rollout(table, {}, where="x")
    assert data == write_table(table.drop_columns(OWN_SAMPLE), {}, token_column="response_ids")
    assert not set(OWN_SAMPLE) & set(read_table(data, where="x")[0].column_names)
    assert back(memory, data).equals(table)


def test_each_token_has_as_many_distinct_ids_of_it() -> None:
    table = sampled()
    ids, logprobs = (table.column(name).to_pylist() for name in (IDS, LOGPROBS))
    cases: list[tuple[str, list[Any], str]] = [
        (IDS, [ids[0], None, ids[2]], f"'{IDS}' holds 1 nulls in 3 rows, where a sample has none"),
        (LOGPROBS, [*logprobs[:2], logprobs[2][1:]], f"row 2 has .* values in '{LOGPROBS}'"),
        (IDS, [[], [], []], f"row 0 has 0 values in '{IDS}'"),
        (IDS, [[0, 1, 2, 1, *ids[0][4:]], *ids[1:]], f"'{IDS}' names an id twice at a token"),
        (LOGPROBS, [[0.5, *logprobs[0][1:]], *logprobs[1:]], "0.5, which is no log-probability"),
    ]
    for name, rows, words in cases:
        with pytest.raises(DataError, match=f"store/x: .*{words}"):
            write_rollout(changed(table, name, rows), {}, where="store/x")


def uneven() -> pa.Table:
    """Return rollout rows whose tokens have one, two, … ids of their own sample."""
    table = rollout_table(3)
    counts = [list(range(1, n + 1)) for n in list_lengths(table, "response_ids").tolist()]
    table = changed(table, IDS, [[i for c in row for i in range(c)] for row in counts])
    table = changed(table, LOGPROBS, [[-1.0] * sum(row) for row in counts])
    return changed(table, COUNT, counts)


def test_tokens_may_have_numbers_of_ids_of_their_own(memory: Storage) -> None:
    table = uneven()
    assert back(memory, write_rollout(table, {}, where="x")).equals(table)
    ids, counts = table.column(IDS).to_pylist(), table.column(COUNT).to_pylist()
    long = max(range(3), key=lambda row: len(counts[row]))
    doubled = [*ids[:long], [0, 1, 1, *ids[long][3:]], *ids[long + 1 :]]
    cases: list[tuple[str, list[Any], str]] = [
        (COUNT, [counts[0], None, counts[2]], f"'{COUNT}' holds 1 nulls in 3 rows"),
        (COUNT, [[*counts[0], 1], *counts[1:]], f"row 0 has .* values in '{COUNT}'"),
        (COUNT, [[0, *counts[0][1:]], *counts[1:]], f"'{COUNT}' holds 0, where each token has"),
        (COUNT, [[2, *counts[0][1:]], *counts[1:]], f"row 0 has .* values in '{IDS}'"),
        (IDS, [[-1, *ids[0][1:]], *ids[1:]], f"'{IDS}' holds -1, which is no id"),
        (IDS, doubled, f"'{IDS}' names an id twice at a token"),
    ]
    for name, rows, words in cases:
        with pytest.raises(DataError, match=words):
            write_rollout(changed(table, name, rows), {}, where="x")
