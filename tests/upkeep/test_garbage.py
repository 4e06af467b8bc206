"""`opd cache gc` and `pin`: what nothing names goes, where asked to, and nothing else."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.cache.holds import held
from pipeline.store.commit import committed_units, read_commit
from pipeline.store.storage import Storage
from pipeline.store.sweeps import Sweep
from schemas.keys import scorer_folder, sweep_key
from tests.support.caches import copy_store, scorer_of, store_of
from tests.support.children import clean_until, publish_again_and_again
from tests.support.runs import Cli, finish, keys_below, snapshot, start_function
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run

OLD_S = 3 * 86400.0
NOBODY = 65534


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


def test_a_dry_run_of_gc_needs_no_right_to_write(finished_run: Path, cli: Cli) -> None:
    with tempfile.TemporaryDirectory() as parent:
        root, lasting = Path(parent, "store"), os.geteuid()
        shutil.copytree(finished_run / "store", root)
        lost = plant(Storage(str(root)), age_s=OLD_S)
        folders = [Path(parent), root, *(path for path in root.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            if not lasting:  # what may not be written is no matter to the superuser
                os.seteuid(NOBODY)
            found = cli("cache", "gc", "--root", root, "--json")
        finally:
            os.seteuid(lasting)
            for folder in folders:
                folder.chmod(0o755)
        assert found.code == 0, found.stderr
        assert set(found.result["keys"]) == lost


def test_a_scorer_that_a_command_works_on_is_not_deleted(run_copy: Path, cli: Cli) -> None:
    storage = store_of(run_copy)
    shutil.rmtree(run_copy / "store/runs")
    options = ("--delete", "--older-than", "0", "--unused-scorers")
    with held(storage, [scorer_of(storage)]):
        result = cli.ok(*gc_of(run_copy, *options))
        assert result["unused_scorers"][0]["held"]
        assert cli.ok("cache", "verify", "-c", run_copy / "run.toml")["exit_code"] == 0
        assert "works on it now" in cli(*gc_of(run_copy)).stdout
    cli.ok(*gc_of(run_copy, *options))
    assert keys_below(storage, "") == []


def test_a_clean_up_waits_for_no_other_and_takes_over_from_a_dead_one(
    run_copy: Path, cli: Cli
) -> None:
    storage = store_of(run_copy)
    plant(storage, age_s=OLD_S)
    with Sweep(storage, ["rollouts/x"]):
        outcome = cli(*gc_of(run_copy, "--delete"))
        assert outcome.code == 6
        assert "another `opd cache gc` deletes now" in outcome.stderr
        make_older(storage, [sweep_key()], OLD_S)
        assert cli.ok(*gc_of(run_copy, "--delete"))["objects"] == 6
    assert not storage.exists(sweep_key())


@pytest.mark.slow
def test_writers_in_other_processes_lose_nothing_to_clean_up(tmp_path: Path) -> None:
    root = str(tmp_path)
    cleaner = start_function(clean_until, root, "done")
    writers = [start_function(publish_again_and_again, root, n) for n in range(2)]
    for writer in writers:
        outcome = finish(writer)
        assert outcome.code == 0, outcome.stderr
    (tmp_path / "done").touch()
    assert finish(cleaner).code == 0
    storage = Storage(root)
    for n in range(2):
        units = committed_units(storage, f"runs/r{n}/x")
        assert units
        for unit in units:
            storage.read_shard(read_commit(storage, f"runs/r{n}/x", unit, fingerprint="f").shard)
