"""A run whose prompts are drawn by difficulty, with kills, and records that change later."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.curriculum.difficulty import carried_on, read_difficulty
from pipeline.runs.curriculum.draw import draw_by_difficulty
from pipeline.runs.run import Run, open_run
from pipeline.shards.rollouts import read_rollout
from pipeline.store.records import find_record
from pipeline.store.storage import Storage
from schemas.keys import manifest_key, prompts_folder
from schemas.records.runs import PromptsManifest
from tests.support.runs import Cli, snapshot
from tests.support.tiny import write_run

REWARD: dict[str, object] = {"reward.grader": "exact_match", "reward.unfinished": "grade"}


def write_curriculum(folder: Path, by: str, teachers: tuple[str, ...] = ("main",)) -> Path:
    changes = {
        "run.rounds": 3,
        "eval": None,
        "schedule.prompts.by": by,
        "schedule.prompts.hardness": [[0, 1.0]],
        "schedule.prompts.floor": 0.1,
        "rollout.samples_per_prompt": 2,
        "rollout.prompts_per_round": 6,
        **(REWARD if by == "reward" else {}),
    }
    return write_run(folder, changes=changes, teachers=teachers)


def opened(config: Path, *overrides: str) -> Run:
    return open_run(load_config(config, overrides))


def prompt_ids(run: Run) -> Any:
    from pipeline.prompts.pinning import read_prompts

    pinned = find_record(
        run.storage, manifest_key(prompts_folder(run.name, "train")), PromptsManifest
    )
    assert pinned is not None
    return read_prompts(run.storage, pinned).column("prompt_id")


def sampled(run: Run, number: int) -> list[str]:
    rollout = run.rollout(number)
    assert rollout is not None
    tables = [read_rollout(run.storage, u.shard, columns=["prompt_id"]) for u in rollout.units]
    return [one for table in tables for one in table.column("prompt_id").to_pylist()]


def teachers_of(run: Run, number: int) -> dict[str, str]:
    """Return who scores each prompt of a round."""
    rollout = run.rollout(number)
    assert rollout is not None
    names = ["prompt_id", "teacher"]
    tables = [read_rollout(run.storage, u.shard, columns=names) for u in rollout.units]
    return {row["prompt_id"]: row["teacher"] for table in tables for row in table.to_pylist()}


def stored(run: Run, number: int) -> Any:
    plan = run.plan(number)
    assert plan is not None and plan.schedule is not None and plan.schedule.prompts is not None
    shard = plan.schedule.prompts.difficulty
    return None if shard is None else read_difficulty(run.storage, shard)


@pytest.mark.parametrize("by", ["kl", "reward"])
def test_rounds_draw_by_what_the_round_before_measured(by: str, tmp_path: Path, cli: Cli) -> None:
    config = write_curriculum(tmp_path, by)
    cli.ok("run", "-c", config)
    run = opened(config)
    ids = prompt_ids(run).to_pylist()
    assert stored(run, 0) is None
    first, second = stored(run, 1), stored(run, 2)
    drawn = [set(sampled(run, number)) for number in range(3)]
    known = {one for one, value in zip(ids, first, strict=True) if not np.isnan(value)}
    assert known == drawn[0]
    again = {one for one, value in zip(ids, second, strict=True) if not np.isnan(value)}
    assert again == drawn[0] | drawn[1]
    rows, _ = draw_by_difficulty(first, per_round=6, hardness=1.0, floor=0.1, round_index=1, seed=7)
    assert Counter(sampled(run, 1)) == Counter([ids[row] for row in rows] * 2)
    left = [ids.index(one) for one in drawn[0] - drawn[1]]
    np.testing.assert_array_equal(second[left], first[left])  # carried forward
    for number in (1, 2):
        shown = cli.ok("status", "-c", config)["rounds"][number]["schedule"]
        assert shown == {"prompts.hardness": 1.0}
    # killed after its plan, a round draws the same, though the records before it have changed
    storage = Storage(str(tmp_path / "store"))
    before = snapshot(storage, "runs/tiny/rounds/0002/rollout")
    plan = (tmp_path / "store/runs/tiny/rounds/0002/rollout/plan.json").read_bytes()
    for key in ("commits", "manifest.json"):
        path = tmp_path / "store/runs/tiny/rounds/0002/rollout" / key
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for stage in ("score/main", "grade"):
        shutil.rmtree(tmp_path / "store/runs/tiny/rounds/0001" / stage, ignore_errors=True)
    cli.ok("rollout", "-c", config, "--round", "2")
    assert snapshot(storage, "runs/tiny/rounds/0002/rollout") == before

    # without its plan the records before it are asked again, and they are gone
    shutil.rmtree(tmp_path / "store/runs/tiny/rounds/0002/rollout")
    outcome = cli("rollout", "-c", config, "--round", "2")
    assert outcome.code == 2 and f"schedule.prompts.by = '{by}' needs the" in outcome.stderr
    for stage in ("score", "grade") if by == "reward" else ("score",):
        cli.ok(stage, "-c", config, "--round", "1")
    cli.ok("rollout", "-c", config, "--round", "2")
    found = (tmp_path / "store/runs/tiny/rounds/0002/rollout/plan.json").read_bytes()
    assert json.loads(found)["schedule"] == json.loads(plan)["schedule"]

    # a clean-up keeps what plans name, and what is damaged is told
    cli.ok("cache", "gc", "-c", config, "--older-than", "0", "--delete")
    np.testing.assert_array_equal(stored(run, 2), second)
    assert carried_on(run, 2, prompt_ids(run)) is not None
    shard = json.loads(found)["schedule"]["prompts"]["difficulty"]["key"]
    (tmp_path / "store" / shard).write_bytes(b"no shard")
    forget = tmp_path / "store/runs/tiny/rounds/0002/rollout/manifest.json"
    forget.unlink()
    outcome = cli("rollout", "-c", config, "--round", "2")
    assert outcome.code == 4 and shard in outcome.stderr


def test_the_hardest_prompts_go_to_a_teacher_of_their_own_and_stay_there(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_curriculum(tmp_path, "kl", teachers=("main", "strong"))
    for name in ("prompts", "held-out"):  # whose prompts name teachers in turn
        path = tmp_path / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        bare = [{key: row[key] for key in row if key != "teacher"} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    options = ("--set", "schedule.prompts.hard_teacher=strong", "--set", "run.rounds=2")
    cli.ok("run", "-c", config, *options)
    run = opened(config, *options[1::2])
    ids = prompt_ids(run).to_pylist()
    difficulty = dict(zip(ids, stored(run, 1), strict=True))
    known = sorted(value for value in difficulty.values() if not np.isnan(value))
    hard = set(known[-(-3 * (len(known) - 1) // 4) :])
    assert teachers_of(run, 0) == dict.fromkeys(sampled(run, 0), "main")
    found = teachers_of(run, 1)
    assert {one for one, name in found.items() if name == "strong"} == {
        one for one in found if difficulty[one] in hard
    }
    assert "strong" in found.values() and "main" in found.values()
    folder = tmp_path / "store" / "runs" / run.name / "rounds" / "0001" / "rollout"
    manifest = (folder / "manifest.json").read_bytes()
    shutil.rmtree(folder / "commits", ignore_errors=True)
    (folder / "manifest.json").unlink()
    cli.ok("rollout", "-c", config, "--round", "1", *options)  # as the plan says
    assert (folder / "manifest.json").read_bytes() == manifest
