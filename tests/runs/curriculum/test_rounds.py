"""A run with a schedule: each round trains with its own values, which its plan has fixed."""

import json
import shutil
from pathlib import Path

from pipeline.store.storage import Storage
from tests.support.runs import Cli, snapshot
from tests.support.tiny import write_run

SCHEDULE = {
    "run.rounds": 3,
    "eval": None,
    "loss.kind": "jsd",
    "score.temperatures": [2.0],
    "schedule.teacher": [[0, "small"], [2, "big"]],
    "schedule.loss.beta": [[0, 0.2], [2, 0.8]],
    "schedule.loss.temperature": [[0, 1.0], [1, 2.0]],
    "schedule.loss.distill_weight": [[0, 1.0], [1, 1.0], [1, 0.5]],
}
VALUES = [
    {"teacher": "small", "loss.beta": 0.2, "loss.distill_weight": 1.0, "loss.temperature": 1.0},
    {"teacher": "small", "loss.beta": 0.5, "loss.distill_weight": 0.5, "loss.temperature": 2.0},
    {"teacher": "big", "loss.beta": 0.8, "loss.distill_weight": 0.5, "loss.temperature": 2.0},
]


def write_scheduled(folder: Path, **changes: object) -> Path:
    """Write a run with a schedule whose prompts name no teacher."""
    given = {**SCHEDULE, **changes}
    config = write_run(folder, changes=given, teachers=("small", "big"))
    prompts = folder / "prompts.jsonl"
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "teacher"} for row in rows]
    prompts.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return config


def test_each_round_has_its_own_values_and_keeps_them(tmp_path: Path, cli: Cli) -> None:
    config = write_scheduled(tmp_path)
    assert cli.ok("plan", "-c", config)["schedule"] == VALUES[0]
    assert cli.ok("plan", "-c", config, "--round", "2", "--dry-run")["schedule"] == VALUES[2]
    assert "round 0: teacher small, loss.beta 0.2" in cli("plan", "-c", config).stdout
    cli.ok("run", "-c", config)
    rounds = cli.ok("status", "-c", config)["rounds"]
    assert [one["schedule"] for one in rounds] == VALUES
    for number, values in enumerate(VALUES):
        rows = {
            name: json.loads(
                (
                    tmp_path / f"store/runs/tiny/rounds/{number:04d}/score/{name}/manifest.json"
                ).read_text()
            )["rows"]
            for name in ("small", "big")
        }
        other = ({"small", "big"} - {values["teacher"]}).pop()
        assert rows == {values["teacher"]: 16, other: 0}

    # a round that is trained again, from its plan, gives the same student
    storage = Storage(str(tmp_path / "store"))
    before = snapshot(storage, "runs/tiny")
    for key in ("rounds/0002/train", "checkpoints/0003"):
        shutil.rmtree(tmp_path / "store/runs/tiny" / key)
    cli.ok("run", "-c", config)
    assert snapshot(storage, "runs/tiny") == before

    # and another schedule is another run
    outcome = cli("train", "-c", config, "--round", "1", "--set", "schedule.loss.beta=[[0, 0.5]]")
    assert outcome.code == 3 and "schedule.loss.beta: the run began with" in outcome.stderr
