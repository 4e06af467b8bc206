"""The cache commands: on copies of a finished run, on a folder and on S3."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.index.compaction import compact
from pipeline.cache.index.index import Index
from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from pipeline.upkeep.figures import bounds_of, bucket_of
from pipeline.upkeep.inventory import cache_commits
from pipeline.upkeep.references import scorer_references
from schemas.columns import flat_values, list_array, list_lengths
from schemas.fingerprint import fingerprint, sha256
from schemas.keys import commit_key, scorer_folder
from schemas.records.scores import CacheCommit
from schemas.records.shards import Shard
from tests.support.runs import Cli, keys_below, snapshot
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run
from tests.support.tinytables import make_scorer, rollout_table, score_rows


def store_of(folder: Path) -> Storage:
    """Return the store of a run's folder."""
    return Storage(str(folder / "store"))


def scorer_of(storage: Storage) -> str:
    """Return the only scorer of a root."""
    (found,) = storage.folders("cache")
    return found


def copy_store(source: Storage, target: Storage) -> None:
    """Put all objects of a root that is a folder into another root."""
    for key in keys_below(source, ""):
        target.put(key, source.get(key) or b"")


def store_unit(
    storage: Storage,
    scorer: Scorer,
    rows: pa.Table,
    *,
    whose: Scorer | None = None,
    unit: str | None = None,
    scores: pa.Table | None = None,
) -> str:
    """Commit random scores of rollout rows to a scorer's cache; return the shard's key.

    Args:
        storage: the store.
        scorer: whose cache it is.
        rows: the rollout rows.
        whose: scorer that the shard says it is of; default the same.
        unit: digest that the commit says; default the right one.
        scores: score table; default a random one.
    """
    table = score_rows(rows) if scores is None else scores
    data = write_scores(table, (whose or scorer).identity)
    digests = rows.column("sequence_digest").to_pylist()
    tokens = int(list_lengths(rows, "response_ids").sum())
    shard = content_shard(f"{scorer.folder}/data", data, rows=rows.num_rows, tokens=tokens)
    commit = CacheCommit(
        unit=unit or fingerprint(digests),
        shard=shard,
        fingerprint=scorer.key,
        attempt="a",
        paid_by="demo/0000",
        teacher_tokens=0,
        reused_rows=0,
    )
    storage.put(shard.key, data)
    storage.put(f"{scorer.folder}/scorer.json", scorer.identity.to_bytes())
    storage.put(commit_key(scorer.folder, commit.unit), commit.to_bytes())
    return shard.key


# --- ls ---


def test_ls_lists_each_scorer_with_its_size_and_the_rounds_that_use_it(
    finished_run: Path, cli: Cli
) -> None:
    storage = store_of(finished_run)
    result = cli.ok("cache", "ls", "-c", finished_run / "run.toml")
    (entry,) = result["scorers"]
    assert entry["scorer"] == scorer_of(storage)
    assert (entry["codec"], entry["k"], entry["units"]) == ("typed-v1", 4, 8)
    assert entry["rows"] == entry["scored_rows"] == 32
    shards = list((finished_run / "store/cache").glob("*/data/*.parquet"))
    assert entry["bytes"] == sum(path.stat().st_size for path in shards)
    uses = [{"run": "tiny", "round": index, "teacher": "main"} for index in (0, 1)]
    assert entry["uses"] == uses
    shown = cli("cache", "ls", "--root", storage.root).stdout
    assert entry["scorer"][:8] in shown
    assert "tiny 0-1 (main)" in shown


@pytest.mark.s3
def test_ls_of_a_root_on_s3_says_the_same(
    finished_run: Path, s3_storage: Storage, cli: Cli
) -> None:
    copy_store(store_of(finished_run), s3_storage)
    mine = cli.ok("cache", "ls", "--root", s3_storage.root)
    assert mine["scorers"] == cli.ok("cache", "ls", "-c", finished_run / "run.toml")["scorers"]


def test_ls_of_an_empty_root_lists_nothing(tmp_path: Path, cli: Cli) -> None:
    assert cli.ok("cache", "ls", "--root", tmp_path)["scorers"] == []


def test_a_folder_that_is_not_there_is_a_mistake_with_the_nearest_name(
    run_copy: Path, cli: Cli
) -> None:
    for command in (("ls",), ("verify",), ("stats",), ("gc", "--delete")):
        outcome = cli("cache", *command, "--root", run_copy / "stoer")
        assert outcome.code == 2
        assert f"did you mean {run_copy / 'store'}?" in outcome.stderr
    assert not (run_copy / "stoer").exists()
    deep = cli("cache", "ls", "--root", run_copy / "xyz/a/b")
    assert deep.code == 2
    assert f"; {run_copy} is there" in deep.stderr
    moved = ("cache", "merge", "--root", run_copy / "new", "--from-root")
    assert cli(*moved, run_copy / "stoer").code == 2
    assert cli(*moved, run_copy / "store").code == 0


def test_ls_names_a_damaged_commit(run_copy: Path, cli: Cli) -> None:
    path = next((run_copy / "store/cache").glob("*/commits/*.json"))
    path.write_bytes(b"{")
    outcome = cli("cache", "ls", "-c", run_copy / "run.toml")
    assert outcome.code == 4
    assert path.name in outcome.stderr


def test_a_root_is_given_in_one_way(finished_run: Path, cli: Cli) -> None:
    config, root = finished_run / "run.toml", str(finished_run / "store")
    assert cli("cache", "ls").code == 2
    assert cli("cache", "ls", "-c", config, "--root", root).code == 2
    assert cli("cache", "ls", "--root", root, "--set", "run.name=x").code == 2


# --- verify ---


def shards_of(folder: Path) -> list[Path]:
    """Return the score shards of a run's folder."""
    return sorted((folder / "store/cache").glob("*/data/*.parquet"))


def test_verify_finds_nothing_wrong_with_a_finished_run(finished_run: Path, cli: Cli) -> None:
    result = cli.ok("cache", "verify", "-c", finished_run / "run.toml")
    (found,) = result["scorers"]
    assert (found["commits"], found["checked"], found["rows"]) == (8, 8, 32)
    assert found["bytes"] == sum(path.stat().st_size for path in shards_of(finished_run))
    assert found["damaged"] == found["missing"] == found["foreign"] == []
    assert result["exit_code"] == 0


def test_verify_names_every_damaged_and_missing_shard(run_copy: Path, cli: Cli) -> None:
    flipped, cut, gone, *_ = shards_of(run_copy)
    data = flipped.read_bytes()
    flipped.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    outcome = cli("cache", "verify", "-c", run_copy / "run.toml", "--json")
    assert outcome.code == 4
    (found,) = outcome.result["scorers"]
    names = [{Path(f["key"]).name for f in found[kind]} for kind in ("damaged", "missing")]
    assert names == [{flipped.name, cut.name}, {gone.name}]
    assert (found["checked"], found["rows"]) == (8, 20)
    shown = cli("cache", "verify", "-c", run_copy / "run.toml")
    assert shown.code == 4
    assert all(path.name in shown.stdout for path in (flipped, cut, gone))


def test_verify_names_a_shard_of_another_scorer(tmp_path: Path, cli: Cli) -> None:
    storage = Storage(str(tmp_path))
    scorer, stranger = make_scorer("mine"), make_scorer("other")
    rows = rollout_table(4)
    store_unit(storage, scorer, rows)
    key = store_unit(storage, scorer, rollout_table(4, seed=1), whose=stranger)
    outcome = cli("cache", "verify", scorer.key[:6], "--root", tmp_path, "--json")
    assert outcome.code == 3
    (found,) = outcome.result["scorers"]
    assert [f["key"] for f in found["foreign"]] == [key]
    assert stranger.key in found["foreign"][0]["reason"]


def test_verify_names_a_shard_of_other_sequences_and_a_damaged_commit(
    tmp_path: Path, cli: Cli
) -> None:
    storage, scorer = Storage(str(tmp_path)), make_scorer()
    key = store_unit(storage, scorer, rollout_table(4), unit="0" * 32)
    storage.put(f"{scorer.folder}/commits/torn.json", b"{")
    outcome = cli("cache", "verify", "--root", tmp_path, "--json")
    assert outcome.code == 4
    (found,) = outcome.result["scorers"]
    assert [f["key"] for f in found["damaged"]] == [key, f"{scorer.folder}/commits/torn.json"]
    assert "other sequences" in found["damaged"][0]["reason"]


def test_verify_takes_the_sample_that_a_seed_fixes(run_copy: Path, cli: Cli) -> None:
    shards_of(run_copy)[0].unlink()
    codes = [
        cli("cache", "verify", "-c", run_copy / "run.toml", "--sample", "4", "--seed", str(seed))
        for seed in (1, 1, 2, 3, 4, 5, 6)
    ]
    assert codes[0].stdout == codes[1].stdout
    assert {outcome.code for outcome in codes} == {0, 4}


def test_a_scorer_that_is_not_there_is_a_mistake_that_names_those_that_are(
    finished_run: Path, cli: Cli
) -> None:
    outcome = cli("cache", "verify", "nothing", "-c", finished_run / "run.toml")
    assert outcome.code == 2
    assert scorer_of(store_of(finished_run)) in outcome.stderr


# --- stats ---


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


@given(st.integers(0, 1 << 20))
def test_a_position_is_in_the_bucket_whose_bounds_hold_it(position: int) -> None:
    (bucket,) = bucket_of(np.array([position])).tolist()
    low, high = bounds_of(bucket)
    assert low <= position <= high


def rows_of(storage: Storage) -> list[dict[str, Any]]:
    """Return all rows of a root's only scorer, by opd's own reader."""
    scorer = scorer_of(storage)
    tables = [
        read_scores(storage, commit.shard, scorer=scorer)
        for commit in cache_commits(storage, scorer)
    ]
    return [row for table in tables for row in table.to_pylist()]


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


# --- export ---


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


# --- merge ---


def test_a_root_takes_over_the_scores_of_another(run_copy: Path, tmp_path: Path, cli: Cli) -> None:
    other, config = f"{tmp_path}/other", run_copy / "run.toml"
    merged = cli.ok("cache", "merge", "--root", other, "--from-root", f"{run_copy}/store")
    (done,) = merged["scorers"]
    assert (done["units"], done["rows"]) == (8, 32)
    again = cli.ok("cache", "merge", "--root", other, "--from-root", f"{run_copy}/store")
    assert again["scorers"][0]["units"] == 0
    assert cli("cache", "verify", "--root", other).code == 0
    moved = write_run(run_copy, root=other, changes={"rollout.prompts_per_unit": 3, "eval": None})
    assert moved == config
    cli.ok("rollout", "-c", moved, "--round", "0")
    result = cli.ok("score", "-c", moved, "--round", "0")
    assert (result["teacher_tokens"], result["reused_rows"]) == (0, 16)


# --- gc ---

OLD_S = 3 * 86400.0


def plant(storage: Storage, *, age_s: float) -> set[str]:
    """Put objects that nothing names into a root that is a folder; return their keys."""
    scorer = scorer_folder(scorer_of(storage))
    keys = {
        "prompts/lost.parquet",
        "rollouts/lost.parquet",
        "runs/tiny/state/lost.pt",
        "probe/lost",
        *(f"{scorer}/{name}" for name in ("data/lost.parquet", "index/parts/x", "index/tables/x")),
    }
    for key in keys:
        storage.put(key, b"1234")
    make_older(storage, keys, age_s)
    return keys


def make_older(storage: Storage, keys: Iterable[str], age_s: float) -> None:
    """Set the clock of some files of a folder back."""
    assert storage.local_root is not None
    for key in keys:
        then = time.time() - age_s
        os.utime(storage.local_root / key, (then, then))


def gc_of(folder: Path, *options: str) -> tuple[str | Path, ...]:
    """Return the command that cleans a run's folder up."""
    return ("cache", "gc", "-c", folder / "run.toml", *options)


def test_gc_finds_nothing_in_a_finished_run(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    before = keys_below(storage, "")
    result = cli.ok(*gc_of(run_copy, "--older-than", "0", "--delete", "--unused-scorers"))
    assert (result["objects"], result["young"], result["unused_scorers"]) == (0, 0, [])
    assert keys_below(storage, "") == before


def test_gc_says_what_would_go_and_deletes_it_only_where_asked_to(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    before = set(keys_below(storage, ""))
    lost = plant(storage, age_s=OLD_S)
    result = cli.ok(*gc_of(run_copy))
    assert (set(result["keys"]), result["bytes"], result["deleted"]) == (lost, 28, False)
    assert set(keys_below(storage, "")) == before | lost
    assert "nothing was deleted" in cli(*gc_of(run_copy)).stdout
    result = cli.ok(*gc_of(run_copy, "--delete"))
    assert (set(result["keys"]), result["deleted"]) == (lost, True)
    assert set(keys_below(storage, "")) == before
    assert cli.ok("cache", "verify", "-c", run_copy / "run.toml")["exit_code"] == 0


def test_gc_leaves_alone_what_is_younger_than_the_limit(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    lost = plant(storage, age_s=3600)
    result = cli.ok(*gc_of(run_copy, "--delete"))
    assert (result["objects"], result["young"]) == (0, len(lost))
    assert lost <= set(keys_below(storage, ""))
    assert set(cli.ok(*gc_of(run_copy, "--older-than", "0.5"))["keys"]) == lost


def test_gc_removes_old_temporary_files(run_copy: Path, cli: Cli) -> None:
    folder = run_copy / "store/rollouts"
    old, new = folder / ".tmp-old", folder / ".tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    make_older(store_of(run_copy), ["rollouts/.tmp-old"], OLD_S)
    result = cli.ok(*gc_of(run_copy, "--delete"))
    assert [Path(name).name for name in result["leftovers"]] == [old.name]
    assert new.exists() and not old.exists()


def test_gc_keeps_the_shard_of_a_unit_that_is_not_committed_yet(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    scorer = scorer_folder(scorer_of(storage))
    shutil.rmtree(run_copy / "store/runs/tiny/rounds")
    for name in storage.names(f"{scorer}/commits"):
        storage.delete(f"{scorer}/commits/{name}")
    before = storage.names(f"{scorer}/data")
    assert len(storage.names(f"{scorer}/index/new")) == len(before) == 8
    result = cli.ok(*gc_of(run_copy, "--older-than", "0", "--delete"))
    assert result["objects"] > 0
    assert storage.names(f"{scorer}/data") == before
    storage.delete(f"{scorer}/index/new/{min(storage.names(f'{scorer}/index/new'))}")
    assert len(cli.ok(*gc_of(run_copy, "--older-than", "0"))["keys"]) == 1


def test_gc_knows_what_a_merged_index_names(local_storage: Storage) -> None:
    index, shards = Index(local_storage, "cache/s"), []
    for unit in range(3):
        digest = sha256(f"shard {unit}".encode())
        key = f"cache/s/data/{digest}.parquet"
        shards.append(Shard(key=key, sha256=digest, bytes=1, rows=2, tokens=3))
        commit = CacheCommit(
            unit=f"u{unit}",
            shard=shards[-1],
            fingerprint="s",
            attempt="a",
            paid_by="demo/0000",
            teacher_tokens=0,
            reused_rows=0,
        )
        index.add(commit, [sha256(f"{unit} {row}".encode())[:32] for row in range(2)])
    assert compact(local_storage, index, new_units=3)
    for name in local_storage.names("cache/s/commits"):
        local_storage.delete(f"cache/s/commits/{name}")
    pieces = {
        f"cache/s/index/{kind}/{name}"
        for kind in ("parts", "tables")
        for name in local_storage.names(f"cache/s/index/{kind}")
    }
    assert len(pieces) == 2
    assert scorer_references(local_storage, "s") == pieces | {shard.key for shard in shards}


def test_gc_takes_what_a_deleted_run_alone_used_but_no_scorer_unless_asked_to(
    run_copy: Path, cli: Cli
) -> None:
    storage = store_of(run_copy)
    scorer, config = scorer_of(storage), ("-c", run_copy / "run.toml")
    shutil.rmtree(run_copy / "store/runs")
    make_older(storage, keys_below(storage, ""), OLD_S)
    result = cli.ok(*gc_of(run_copy, "--delete"))
    assert {key.split("/")[0] for key in result["keys"]} == {"prompts", "rollouts"}
    (unused,) = result["unused_scorers"]
    assert (unused["scorer"], unused["young"]) == (scorer, False)
    assert f"no run names scorer {scorer}" in cli(*gc_of(run_copy)).stdout
    assert cli.ok("cache", "verify", *config)["exit_code"] == 0

    assert cli.ok("cache", "pin", scorer[:8], *config)["changed"]
    assert not cli.ok("cache", "pin", scorer, *config)["changed"]
    storage.put(f"cache/{scorer}/data/lost.parquet", b"1")
    make_older(storage, [f"cache/{scorer}/data/lost.parquet"], OLD_S)
    result = cli.ok(*gc_of(run_copy, "--delete", "--unused-scorers"))
    assert (result["objects"], result["pinned"]) == (0, [scorer])

    assert cli.ok("cache", "unpin", scorer[:8], *config)["changed"]
    cli.ok(*gc_of(run_copy, "--delete", "--unused-scorers"))
    assert keys_below(storage, "") == []


def test_gc_leaves_an_unused_scorer_alone_while_any_object_of_it_is_young(
    run_copy: Path, cli: Cli
) -> None:
    storage = store_of(run_copy)
    shutil.rmtree(run_copy / "store/runs")
    keys = keys_below(storage, "cache")
    make_older(storage, keys, OLD_S)
    make_older(storage, keys[:1], 60)
    result = cli.ok(*gc_of(run_copy, "--delete", "--unused-scorers"))
    assert result["unused_scorers"][0]["young"]
    assert keys_below(storage, "cache") == keys


def test_gc_deletes_nothing_where_a_record_cannot_be_read(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    lost = plant(storage, age_s=OLD_S)
    storage.put("runs/tiny/rounds/0000/rollout/plan.json", b"{torn")
    outcome = cli(*gc_of(run_copy, "--delete"))
    assert outcome.code == 4
    assert "rollout/plan.json" in outcome.stderr
    assert lost <= set(keys_below(storage, ""))


def test_a_finished_run_has_nothing_to_do_after_gc_and_its_cache_serves_another(
    run_copy: Path, cli: Cli
) -> None:
    storage, config = store_of(run_copy), run_copy / "run.toml"
    lost = plant(storage, age_s=1)
    before = snapshot(storage, "")
    result = cli.ok(*gc_of(run_copy, "--delete", "--older-than", "0", "--unused-scorers"))
    assert set(result["keys"]) == lost
    for _ in range(2):
        again = cli.ok("run", "-c", config)
        assert (again["units"], again["teacher_tokens"], again["reused_rows"]) == (0, 0, 0)
        for stage in ("rollout", "score", "train", "eval"):
            assert cli.ok(stage, "-c", config, "--round", "1")["units"] == 0
    assert snapshot(storage, "") == before
    other = write_run(run_copy, changes={"run.name": "other", "eval": None}, file="other.toml")
    cli.ok("rollout", "-c", other, "--round", "0")
    served = cli.ok("score", "-c", other, "--round", "0")
    assert (served["teacher_tokens"], served["reused_rows"]) == (0, 16)


@pytest.mark.s3
def test_gc_on_s3_takes_lost_objects_and_aborts_multipart_uploads(
    finished_run: Path, s3_storage: Storage, s3_server: SeaweedServer, cli: Cli
) -> None:
    copy_store(store_of(finished_run), s3_storage)
    before = keys_below(s3_storage, "")
    s3_storage.put("rollouts/lost.parquet", b"1234")
    client = s3_server.account.client()
    bucket, prefix = s3_storage.root.removeprefix("s3://").split("/")

    def uploads(folder: str) -> list[str]:
        reply = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/")
        return [found["Key"] for found in reply.get("Uploads", [])]

    for key in (f"{prefix}/runs/tiny/state/x.pt", f"{prefix}-other/x.pt"):
        client.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    command = ("cache", "gc", "--root", s3_storage.root, "--delete")
    young = cli.ok(*command)
    assert (young["keys"], young["leftovers"]) == ([], [])
    assert len(uploads(prefix)) == 1
    time.sleep(3)  # the store tells time in seconds
    result = cli.ok(*command, "--older-than", "0.0003")
    assert result["keys"] == ["rollouts/lost.parquet"]
    assert result["leftovers"] == [f"{bucket}/{prefix}/runs/tiny/state/x.pt"]
    assert uploads(prefix) == []
    assert uploads(f"{prefix}-other") == [f"{prefix}-other/x.pt"]
    assert keys_below(s3_storage, "") == before
