"""`opd cache export`: every row as opd reads it, whole files or none."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.store.storage import Storage
from schemas.columns import list_array, list_lengths
from tests.support.caches import rows_of, scorer_of, shards_of, store_of, store_unit
from tests.support.runs import Cli
from tests.support.tinytables import make_scorer, rollout_table, score_rows


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_export_holds_every_row_as_opd_reads_it(
    kind: str, whole: bool, finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    storage = store_of(finished_run)
    scorer, target = scorer_of(storage), tmp_path / (f"scores.{kind}" if whole else "scores")
    root, to = ("--root", storage.root), ("--to", target, "--format", kind)
    result = cli.ok("cache", "export", scorer[:8], *root, *to)
    assert (result["rows"], result["files"]) == (32, 1 if whole else 8)
    files = [target] if whole else sorted(target.iterdir())
    assert all(path.suffix == f".{kind}" for path in files)
    read = pl.read_parquet if kind == "parquet" else pl.read_ndjson
    found = {row["sequence_digest"]: row for path in files for row in read(path).to_dicts()}
    expected = rows_of(storage)
    assert len(found) == len(expected)
    for row in expected:
        mine = found[row["sequence_digest"]]
        assert set(mine) == {name for name, value in row.items() if value is not None}
        for name, value in mine.items():
            exact = name == "sequence_digest"
            assert value == (row[name] if exact else pytest.approx(row[name]))
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_an_export_overwrites_nothing_and_leaves_nothing_half_written(
    run_copy: Path, tmp_path: Path, cli: Cli
) -> None:
    storage, there = store_of(run_copy), tmp_path / "there.parquet"
    there.write_bytes(b"mine")
    command = ("cache", "export", scorer_of(storage), "--root", storage.root, "--format", "parquet")
    assert cli(*command, "--to", there).code == 2
    assert there.read_bytes() == b"mine"
    shards_of(run_copy)[-1].write_bytes(b"torn")
    for name in ("new.parquet", "folder"):
        assert cli(*command, "--to", tmp_path / "out" / name).code == 4
    assert list((tmp_path / "out").iterdir()) == []
    assert cli(*command[:-1], "csv", "--to", tmp_path / "x").code == 2


def test_minus_infinity_is_null_in_json_lines(tmp_path: Path, cli: Cli) -> None:
    storage, scorer, rows = Storage(str(tmp_path / "store")), make_scorer(), rollout_table(2)
    table = score_rows(rows)
    lengths = list_lengths(table, "tail_logprobs")
    kind = table.schema.field("tail_logprobs")
    array = list_array(np.full(lengths.sum(), -np.inf, np.float32), lengths, kind.type)
    table = table.set_column(table.schema.get_field_index(kind.name), kind, array)
    store_unit(storage, scorer, rows, scores=table)
    target = tmp_path / "scores.jsonl"
    cli.ok(
        "cache", "export", scorer.key, "--root", storage.root, "--to", target, "--format", "jsonl"
    )
    for line in target.read_text().splitlines():
        assert set(json.loads(line)["tail_logprobs"]) == {None}
