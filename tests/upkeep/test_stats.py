"""`opd cache stats` against loops over every token."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.store.storage import Storage
from schemas.columns import flat_values, list_array, list_lengths
from tests.support.caches import rows_of, shards_of, store_of, store_unit
from tests.support.runs import Cli
from tests.support.tinytables import make_scorer, rollout_table, score_rows


def test_stats_agree_with_loops_over_every_token(finished_run: Path, cli: Cli) -> None:
    storage = store_of(finished_run)
    (found,) = cli.ok("cache", "stats", "-c", finished_run / "run.toml")["scorers"]
    tokens = [t for row in rows_of(storage) for t in tokens_of(row)]
    assert found["tokens"] == found["all"]["tokens"] == len(tokens)
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / len(tokens))
    names = ("topk_mass", "tail_mass", "entropy", "token_probability")
    spans = [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    assert [(p["from"], p["to"]) for p in found["positions"]] == spans
    for figures, (low, high) in zip(found["positions"], spans, strict=True):
        mine = [t for t in tokens if low <= t["position"] <= high]
        assert figures["tokens"] == len(mine)
        for name in names:
            assert figures[name] == pytest.approx(sum(t[name] for t in mine) / len(mine))
    kinds = {"mass": "topk_mass", "tail": "log_tail", "entropy": "entropy"}
    for kind, name in kinds.items():
        edges = found["edges"][kind]
        expected = [
            sum((a is None or t[name] >= a) and (b is None or t[name] < b) for t in tokens)
            for a, b in pairwise(edges)
        ]
        assert found["all"][f"{kind}_histogram"] == expected
        assert sum(expected) == len(tokens)


def test_stats_tell_how_probable_the_last_token_is_by_how_a_response_ended(
    finished_run: Path, cli: Cli
) -> None:
    storage = store_of(finished_run)
    ends: dict[str, str] = {}
    for name in storage.names("rollouts"):
        table = pq.read_table(finished_run / "store/rollouts" / name)
        columns = [table.column(c).to_pylist() for c in ("sequence_digest", "finish_reason")]
        ends.update(zip(*columns, strict=True))
    expected: dict[str, list[float]] = {"stop": [], "length": []}
    for row in rows_of(storage):
        expected[ends[row["sequence_digest"]]].append(math.exp(row["token_logprob"][-1]))
    (found,) = cli.ok("cache", "stats", "-c", finished_run / "run.toml")["scorers"]
    for reason, values in expected.items():
        assert found["last_token"][reason]["rows"] == len(values) > 0
        mean = pytest.approx(sum(values) / len(values))
        assert found["last_token"][reason]["probability"] == mean
    assert found["last_token"]["unknown"] == {"rows": 0, "probability": None}
    shown = cli("cache", "stats", "-c", finished_run / "run.toml").stdout
    assert "entropy, nats" in shown
    assert "8-15" in shown


def test_stats_leave_out_a_damaged_shard_and_name_it(run_copy: Path, cli: Cli) -> None:
    damaged, *_ = shards_of(run_copy)
    damaged.write_bytes(b"nothing")
    for path in (run_copy / "store/rollouts").iterdir():
        path.unlink()
    outcome = cli("cache", "stats", "-c", run_copy / "run.toml", "--json")
    assert outcome.code == 4
    (found,) = outcome.result["scorers"]
    assert [Path(key).name for key in found["refused"]] == [damaged.name]
    assert (found["shards"], found["rows"]) == (7, 28)
    assert found["last_token"]["unknown"]["rows"] == 28
    shown = cli("cache", "stats", "-c", run_copy / "run.toml").stdout
    assert f"cannot be read: cache/{found['scorer']}/data/{damaged.name}" in shown


def test_stats_count_odd_values(tmp_path: Path, cli: Cli) -> None:
    storage, scorer, rows = Storage(str(tmp_path)), make_scorer(), rollout_table(1, seed=3)
    lengths = list_lengths(rows, "response_ids")
    (count,) = lengths.tolist()
    assert count >= 4
    changes: dict[str, dict[int, float]] = {
        "topk_logprobs": {0: 0.0, 4: 0.0, 8: -np.inf},  # the first at rank 1, the second at 2
        "tail_logprobs": {0: -np.inf, 1: 0.0},
        "token_logprob": {0: 0.0, 1: 0.0},
        "token_rank": {0: 1, 1: 2},
        "entropy": {0: 0.0, 1: np.nan, 2: 1.0},
    }
    table = score_rows(rows)
    for name, values in changes.items():
        column = flat_values(table, name).copy()
        column[list(values)] = list(values.values())
        kind = table.schema.field(name)
        array = list_array(column, list_lengths(table, name), kind.type)
        table = table.set_column(table.schema.get_field_index(name), kind, array)
    store_unit(storage, scorer, rows, scores=table)
    (found,) = cli.ok("cache", "stats", "--root", tmp_path)["scorers"]
    odd = {name: tuple(counts.values()) for name, counts in found["odd"].items()}
    assert odd["topk_logprobs"] == (0, 1, 2, 1)
    assert odd["tail_logprobs"] == (0, 1, 1, 1)
    assert odd["token_logprob"] == (0, 0, 2, 1)
    assert odd["entropy"] == (1, 0, 1, 0)


def tokens_of(row: dict[str, Any]) -> list[dict[str, float]]:
    """Return the figures of each token of a row."""
    found = []
    for position, logprob in enumerate(row["token_logprob"]):
        top = row["topk_logprobs"][4 * position : 4 * position + 4]
        tail = row["tail_logprobs"][position]
        found.append(
            {
                "position": position,
                "topk_mass": sum(map(math.exp, top)),
                "tail_mass": math.exp(tail),
                "log_tail": tail,
                "entropy": row["entropy"][position],
                "token_probability": math.exp(logprob),
            }
        )
    return found
