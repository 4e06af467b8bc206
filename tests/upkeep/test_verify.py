"""`opd cache verify`: every damaged, missing and foreign shard by its name."""

from pathlib import Path

from pipeline.store.storage import Storage
from tests.support.caches import scorer_of, shards_of, store_of, store_unit
from tests.support.runs import Cli
from tests.support.tinytables import make_scorer, rollout_table


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
