"""`opd cache ls`: each scorer with its size and what uses it, and how a root is named."""

from pathlib import Path

import pytest

from pipeline.store.storage import Storage
from tests.support.caches import copy_store, scorer_of, store_of
from tests.support.runs import Cli


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
