"""The cache commands: on copies of a finished run, on a folder and on S3."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.commit import commit_key, content_shard
from pipeline.scorer import Scorer
from pipeline.scoretable import write_scores
from pipeline.storage import Storage
from schemas.fingerprint import fingerprint
from schemas.manifest import CacheCommit
from schemas.tables import list_lengths
from tests.runs import Cli, keys_below
from tests.tinytables import make_scorer, rollout_table, score_rows


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
    data = write_scores(table, whose or scorer)
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
