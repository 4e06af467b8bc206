"""The grade stage: rewards of a sampled round, faults that cost a row, grading anew."""

import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.shards.rewards import read_rewards
from pipeline.shards.rollouts import read_rollout
from pipeline.store.storage import Storage
from schemas.errors import DataError
from tests.support.children import run_until_killed
from tests.support.rounds import forget
from tests.support.runs import Cli, finish, keys_below, snapshot, start_function
from tests.support.tiny import write_run

GRADER = "def grade(response, reference, metadata):\n"
OWN = {"reward.grader": "grader.py:grade", "reward.processes": 2, "reward.unfinished": "grade"}
ROWS, UNITS = 16, 4


def graded(folder: Path, body: str = "    return len(response) % 2\n", **changes: object) -> Path:
    """Return the configuration of a run with a grader of its own."""
    (folder / "grader.py").write_text(GRADER + body)
    more = {f"reward.{key}": value for key, value in changes.items()}
    return write_run(folder, changes={"train.save_steps": 1, **OWN, **more})


def rows_of(config: Path) -> list[dict[str, Any]]:
    """Return the rows of round 0's rewards, each with the columns of the rollout beside them."""
    run = open_run(load_config(config))
    rollout, rewards = run.rollout(0), run.rewards(0)
    assert rollout is not None and rewards is not None
    rows = []
    for sampled, graded in zip(rollout.units, rewards.units, strict=True):
        pair = read_rollout(run.storage, sampled.shard), read_rewards(run.storage, graded.shard)
        for row, found in zip(*(table.to_pylist() for table in pair), strict=True):
            assert row["sequence_digest"] == found["sequence_digest"]
            rows.append({**row, **found})
    return rows


def stored(folder: Path) -> Storage:
    return Storage(str(folder / "store"))


def test_a_round_is_graded_once_row_by_row_and_no_model_works(run_copy: Path, cli: Cli) -> None:
    config = graded(run_copy)
    before = keys_below(stored(run_copy), "cache")
    said = cli.ok("grade", "-c", config, "--round", "0")
    assert (said["units"], said["rows"], said["rewarded"], said["faults"]) == (
        UNITS,
        ROWS,
        ROWS,
        {},
    )
    rewards = [row["reward"] for row in rows_of(config)]
    assert set(rewards) == {0.0, 1.0} and said["reward"] == sum(rewards) / ROWS
    assert keys_below(stored(run_copy), "cache") == before
    again = cli.ok("grade", "-c", config, "--round", "0")
    assert (again["units"], again["manifest"]) == (0, said["manifest"])


FAULTY = """
    import os, time
    kind = int(reference) % 12
    if kind in (0, 6): raise ValueError('bad')
    if kind in (1, 7): return float('nan')
    if kind in (2, 8): os._exit(3)
    if kind in (3, 9): return len(bytearray(1 << 33))
    if kind == 4: time.sleep(600)
    return 0.5
"""
KINDS = ("raised", "no_number", "died", "memory", "timed_out", None)


def test_a_row_on_which_the_grader_fails_has_no_reward_and_the_round_goes_on(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy, FAULTY, timeout_s=0.5, memory_gb=1.0)
    outcome = cli("grade", "-c", config, "--round", "0")
    assert outcome.code == 0, outcome.stderr
    rows, counted = rows_of(config), Counter[str]()
    for row in rows:
        answer = int(row["reference"]) % 12
        expected = None if answer == 10 else KINDS[answer % 6]
        assert row["fault"] == expected
        assert row["reward"] == (0.5 if expected is None else None)
        assert (row["words"] is None) == (expected is None)
        counted.update([expected] if expected else [])
    assert len(counted) >= 3
    told = f"{counted.total()} rows without reward"
    said = cli("grade", "-c", config, "--round", "0").stdout  # nothing is done again
    for text in (outcome.stdout, said, cli("status", "-c", config).stdout):
        assert told in text
        assert all(f"{n} {kind.replace('_', ' ')}" in text for kind, n in counted.items())
    assert cli.ok("status", "-c", config, "--round", "0")["without_reward"] == counted


def test_a_mended_grader_grades_anew_and_nothing_is_sampled_or_scored(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy, "    return 1 / 0\n")
    first = cli.ok("grade", "-c", config, "--round", "0")
    assert first["faults"] == {"raised": ROWS} and first["reward"] is None
    quiet = {key for key in keys_below(stored(run_copy), "") if not key.startswith("re")}
    graded(run_copy, "    return 0.25\n")
    refused = cli("grade", "-c", config, "--round", "0")
    assert refused.code == 3 and "opd grade --round 0 --again" in refused.stderr
    second = cli.ok("grade", "-c", config, "--round", "0", "--again")
    assert (second["units"], second["reward"], second["faults"]) == (UNITS, 0.25, {})
    third = cli.ok("grade", "-c", config, "--round", "0", "--again")
    assert (third["units"], third["reward"]) == (0, 0.25)
    assert quiet - set(keys_below(stored(run_copy), "")) == set()


def test_again_grades_units_anew_whose_rows_have_faults_that_may_pass(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(
        run_copy,
        f"    import os\n    if not os.path.exists({str(run_copy / 'judge')!r}):\n"
        "        raise OSError('the judge is not there')\n    return 1\n",
    )
    cli.ok("grade", "-c", config, "--round", "0")
    (run_copy / "judge").touch()
    assert cli.ok("grade", "-c", config, "--round", "0")["reward"] is None
    again = cli.ok("grade", "-c", config, "--round", "0", "--again")
    assert (again["units"], again["reward"], again["faults"]) == (UNITS, 1.0, {})


@pytest.mark.parametrize(
    ("unfinished", "reward", "faults"),
    [("zero", 0.0, 0), ("none", None, 1), ("grade", 1.0, 0)],
)
def test_what_becomes_of_a_response_that_did_not_end(
    unfinished: str, reward: float | None, faults: int, run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy, "    return 1\n", unfinished=unfinished)
    said = cli.ok("grade", "-c", config, "--round", "0")
    cut = [row for row in rows_of(config) if row["finish_reason"] == "length"]
    ended = [row for row in rows_of(config) if row["finish_reason"] == "stop"]
    assert cut and ended and {row["reward"] for row in ended} == {1.0}
    assert {row["reward"] for row in cut} == {reward}
    assert said["faults"] == ({"unfinished": len(cut)} if faults else {})


def test_workers_share_a_round_and_the_last_one_writes_the_manifest(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy)
    first = cli.ok("grade", "-c", config, "--round", "0", "--worker", "0/2")
    assert (first["units"], first["manifest"]) == (2, None)
    grade = cli.ok("status", "-c", config)["rounds"][0]["stages"]["grade"]
    assert (grade["state"], grade["units_done"]) == ("partial", 2)
    (run_copy / "grader.py").write_text(GRADER + "    return 1\n")
    refused = cli("grade", "-c", config, "--round", "0")  # before it grades what is left
    assert refused.code == 3 and "--again" in refused.stderr
    graded(run_copy)
    second = cli.ok("grade", "-c", config, "--round", "0", "--worker", "1/2")
    assert second["units"] == 2 and second["rewarded"] == ROWS


@pytest.mark.slow
def test_grading_that_is_killed_at_its_writes_ends_as_grading_in_peace(
    run_copy: Path, tmp_path: Path, cli: Cli
) -> None:
    quiet = tmp_path / "quiet"
    shutil.copytree(run_copy, quiet)
    cli.ok("grade", "-c", graded(quiet), "--round", "0")
    config, attempts = graded(run_copy), 0
    while True:
        step, command = 4 + attempts % 3, "grade --round 0"
        child = start_function(run_until_killed, str(config), step, attempts % 2 == 0, command)
        outcome = finish(child)
        if outcome.code == 0:
            break
        assert outcome.code == -signal.SIGKILL, outcome.stderr
        attempts += 1
    assert attempts >= 2
    before, after = (snapshot(stored(f), "runs/tiny/rounds/0000/grade") for f in (quiet, run_copy))
    assert before == after and len(before) == UNITS + 1


def test_gc_keeps_rewards_that_a_round_names_and_takes_those_that_none_does(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy)
    cli.ok("grade", "-c", config, "--round", "0")
    gc = ("cache", "gc", "-c", config, "--older-than", "0", "--delete")
    assert [key for key in cli.ok(*gc)["keys"] if key.startswith("rewards/")] == []
    assert len(rows_of(config)) == ROWS
    named = set(stored(run_copy).names("rewards"))
    graded(run_copy, "    return 2\n")
    cli.ok("grade", "-c", config, "--round", "0", "--again")
    taken = {key for key in cli.ok(*gc)["keys"] if key.startswith("rewards/")}
    assert taken == {f"rewards/{name}" for name in named}
    assert {row["reward"] for row in rows_of(config)} == {2.0}


def test_a_run_grades_before_it_trains_and_tells_what_has_no_reward(
    run_copy: Path, cli: Cli
) -> None:
    config = graded(run_copy, "    return 1 / len(response)\n", unfinished="none")
    forget(run_copy, "runs/tiny/rounds/0001/train", "runs/tiny/rounds/0001/eval")
    forget(run_copy, "runs/tiny/checkpoints/0002")
    said = cli.ok("run", "-c", config)
    run = open_run(load_config(config))
    rewards, trained = run.rewards(1), run.train(1)
    assert rewards is not None and trained is not None and run.rewards(0) is None
    assert said["faults"] == rewards.faults and rewards.faults["unfinished"] > 0
    learned = {unit.shard.key for unit in rewards.units}
    assert learned < set(trained.shards)
    assert "grade" in cli("status", "-c", config).stdout
    # another grader gives other rewards, and what was learnt stays, with what it was learnt from
    graded(run_copy, "    return 3\n", unfinished="none")
    again = cli("grade", "-c", config, "--round", "1", "--again")
    assert again.code == 0 and "round 1 is trained already" in again.stderr
    regraded = run.rewards(1)
    assert regraded is not None and regraded.fingerprint != rewards.fingerprint
    assert " train " not in cli("run", "-c", config).stdout
    cli.ok("cache", "gc", "-c", config, "--older-than", "0", "--delete")
    assert run.train(1) == trained and all(map(run.storage.exists, learned))
    # a round that learns from another grader than the one before is told
    cli.ok("grade", "-c", config, "--round", "0")
    graded(run_copy, "    return 4\n", unfinished="none")
    forget(run_copy, "runs/tiny/rounds/0001/train", "runs/tiny/rounds/0001/eval")
    forget(run_copy, "runs/tiny/checkpoints/0002")
    cli.ok("grade", "-c", config, "--round", "1", "--again")
    told = cli("train", "-c", config, "--round", "1")
    assert told.code == 0 and "by another grader" in told.stderr


def test_a_damaged_shard_is_told_and_graded_again(run_copy: Path, cli: Cli) -> None:
    config = graded(run_copy)
    cli.ok("grade", "-c", config, "--round", "0")
    before = rows_of(config)
    shard = next((run_copy / "store" / "rewards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError):
        rows_of(config)
    assert cli.ok("grade", "-c", config, "--round", "0", "--again")["units"] == 1
    assert rows_of(config) == before
