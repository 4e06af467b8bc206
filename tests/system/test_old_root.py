"""A root that an older opd wrote: read as it was, gone on with, and nothing in it rewritten.

`tests/support/old_root/make.py` made it with the code of commit 4a2af35, and wrote down what that
code said of it and how far it came when it went on.
"""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import opening
from schemas.records.scores import CacheCommit
from tests.support.old_root.figures import objects, of_new_records, of_result, other_new_keys
from tests.support.runs import Cli

MADE = Path(__file__).parent.parent / "support" / "old_root"
EXPECTED: dict[str, Any] = json.loads((MADE / "expected.json").read_text())
STATE_ENDINGS = ("json", "safetensors")
"""Of a learner's files: those of the old code were pickles, which are neither read nor written."""
SAID: dict[str, Any] = EXPECTED["before"]
"""What the old commands said of the root."""
RESULTS: dict[str, Any] = EXPECTED["after"]["results"]
"""What the old commands did when they went on."""
RECORDS: dict[str, Any] = EXPECTED["after"]["records"]
"""Commits and manifests that came to the root then."""
OTHER_KEYS = set(EXPECTED["after"]["other_keys"]) | {
    f"runs/{run}/state/*.{ending}" for run in ("old", "packed") for ending in STATE_ENDINGS
}
"""What else came to it, without digests."""

TIMED = re.compile(r"(?<=[a-z])-\d+ms(?=-\*\.parquet$)")
"""How long a call took, which the names of times tell since."""

PASSES = re.compile(
    r"cache/\w+/index/(new/\w+|parts/\w+|tables/\w+|states/\d+\.json)"
    r"|runs/old/rounds/0001/score/main/leases/u\d+\.json"
)
"""Keys that may go: what a merge of the index replaces, and the lease of a killed process."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the root and its TOMLs, under the versions that it was made with.

    They are part of a scorer: with others, a round that is half scored could not go on.
    """
    with tarfile.open(MADE / "root.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    record = json.loads((tmp_path / "store/runs/old/run.json").read_text())
    then = {name: record["software"][name] for name in ("torch", "transformers")}
    now = opening.installed_version
    monkeypatch.setattr(opening, "installed_version", lambda name: then.get(name) or now(name))
    return tmp_path


def teachers_scorer(folder: Path) -> str:
    """Return the key of the scorer that is the teacher's own."""
    manifest = folder / "store/runs/old/rounds/0000/score/main/manifest.json"
    return str(json.loads(manifest.read_text())["scorer"])


def reprocessed(cli: Cli, folder: Path) -> dict[str, Any]:
    """Make what is new of the packed scorer."""
    source = ("--from", teachers_scorer(folder), "--to", "packed", "--codec", "packed-v1")
    return cli.ok("cache", "reprocess", "-c", folder / "run.toml", *source)


def still_says(now: Any, then: Any) -> bool:
    """Return whether all that was said then is said now, where objects may have more fields."""
    if isinstance(then, dict):
        return all(key in now and still_says(now[key], value) for key, value in then.items())
    if isinstance(then, list):
        return len(now) == len(then) and all(map(still_says, now, then))
    return bool(now == then)


def with_states_of_now(key: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it is where no state is a pickle and the old root's are not read."""
    if "/train/" not in key:
        return record
    changed: dict[str, Any] = {"optimizer_restarted": key.startswith("runs/old/")}
    if "files" in record:
        stems = [Path(name).stem for name in record["files"]]
        changed["files"] = sorted(f"{stem}.{end}" for stem in stems for end in STATE_ENDINGS)
    return {**record, **changed}


def records_of(run: str, *payers: str) -> dict[str, Any]:
    """Return what the old code added for a run: its own records, and what payers put in caches."""
    return {
        key: with_states_of_now(key, value)
        for key, value in RECORDS.items()
        if key.startswith(f"runs/{run}/") or value.get("paid_by", "").split("/")[0] in payers
    }


def assert_grown(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Make sure that a root has what it had, as it was, and what the old code would have added."""
    assert [key for key in before if key in after and after[key] != before[key]] == []
    assert [key for key in before if key not in after and not PASSES.fullmatch(key)] == []
    found = {TIMED.sub("", key) for key in other_new_keys(before, after)}
    assert found <= OTHER_KEYS


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("status", ["status"]),
        ("ls", ["cache", "ls"]),
        ("verify", ["cache", "verify"]),
        ("gc", ["cache", "gc", "--older-than", "0"]),
    ],
)
def test_a_command_says_of_an_old_root_what_it_said_then(
    name: str, command: list[str], folder: Path, cli: Cli
) -> None:
    before = objects(folder / "store")
    answer = cli.ok(*command, "-c", folder / "run.toml")
    assert still_says(answer, SAID[name]), answer
    assert objects(folder / "store") == before


@pytest.mark.slow
def test_a_run_that_was_killed_in_an_old_opd_goes_on_to_its_end(folder: Path, cli: Cli) -> None:
    config, cache = folder / "run.toml", f"cache/{teachers_scorer(folder)}"
    before = objects(folder / "store")
    for stage in ("score", "train", "eval"):
        result = cli.ok(stage, "-c", config, "--round", "1")
        assert of_result(result) == RESULTS[stage]
    assert RESULTS["score"]["units"] == 16 - 5
    assert of_result(reprocessed(cli, folder)) == RESULTS["reprocess"]
    assert RESULTS["reprocess"]["units"] == 16 - 5
    assert reprocessed(cli, folder)["units"] == 0
    after = objects(folder / "store")
    assert_grown(before, after)
    assert of_new_records(before, after) == records_of("old", "old", "reprocess")
    written_down = [key for key in before if key.startswith(f"{cache}/index/new/")]
    commits = {key: f"{cache}/commits/{Path(key).name}.json" for key in written_down}
    assert len([commit for commit in commits.values() if commit not in before]) == 1
    for key, commit in commits.items():
        paid, _, _ = before[key].partition(b"\n")
        stands = CacheCommit.from_bytes(after[commit], where=commit)
        assert stands == CacheCommit.from_bytes(paid, where=key), "it is not scored again"
    assert any("/leases/" in key for key in before) and not any("/leases/" in key for key in after)
    assert cli.ok("run", "-c", config)["units"] == 0
    assert cli.ok("cache", "verify", "-c", config)["exit_code"] == 0
    assert cli.ok("cache", "gc", "-c", config, "--older-than", "0")["keys"] == []


@pytest.mark.slow
def test_a_run_learns_from_scores_that_an_old_opd_packed(folder: Path, cli: Cli) -> None:
    shutil.rmtree(folder / "main")
    before = objects(folder / "store")
    again = reprocessed(cli, folder)
    assert (again["units"], again["complete"]) == (0, True)
    assert objects(folder / "store") == before
    for stage in ("score", "train"):
        result = cli.ok(stage, "-c", folder / "packed.toml", "--round", "0")
        assert of_result(result) == RESULTS[f"packed {stage}"]
    scored = RESULTS["packed score"]
    assert (scored["teacher_tokens"], scored["reused_rows"]) == (0, 16)
    after = objects(folder / "store")
    assert_grown(before, after)
    assert of_new_records(before, after) == records_of("packed")


def test_sequences_are_found_by_the_index_that_an_old_opd_merged(folder: Path, cli: Cli) -> None:
    before = objects(folder / "store")
    scored = of_result(cli.ok("score", "-c", folder / "cut.toml", "--round", "0"))
    assert scored == RESULTS["cut score"]
    assert (scored["units"], scored["teacher_tokens"], scored["reused_rows"]) == (6, 0, 16)
    after = objects(folder / "store")
    assert_grown(before, after)
    assert of_new_records(before, after) == records_of("cut", "cut")
