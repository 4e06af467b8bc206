"""What is stored of a small run raises alarms: in `opd status`, `opd run` and the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.report.figures import gather
from pipeline.report.findings import findings
from pipeline.runs.alarms.figures import figures_of
from pipeline.runs.alarms.judging import judged
from pipeline.runs.alarms.seen import Seen, look_at
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.teachers.looks import token_looks
from schemas.records.joins import added_looks
from schemas.records.scores import ScoreManifest
from tests.support.forged import forged
from tests.support.runs import Cli

Plant = Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return open_run(load_config(finished_run / "run.toml"))


@pytest.fixture(scope="module")
def seen(run: Run) -> list[Seen]:
    return look_at(run, [0, 1])


def named(seen: list[Seen]) -> list[str]:
    return [alarm.name for alarm in judged([(one.round, figures_of(one)) for one in seen])]


def with_looks(run: Run, one: Seen, plant: Plant) -> ScoreManifest:
    """Return a round's scores as the stage would have written them from other tables."""
    (scores,) = one.scores
    assert one.rollout is not None
    parts = []
    for rolled, scored in zip(one.rollout.units, scores.units, strict=True):
        rows = read_rollout(run.storage, rolled.shard)
        read = read_scores(run.storage, scored.shard, scorer=scores.scorer)
        parts.append(token_looks(*plant(rows, read), floor=-100.0))
    return scores.model_copy(update={"looks": added_looks(parts)})


def planted(run: Run, seen: list[Seen], plant: Plant) -> list[Seen]:
    return [replace(one, scores=(with_looks(run, one, plant),)) for one in seen]


def domains(rows: pa.Table, scores: pa.Table) -> Any:
    """Return rows of two domains in turn."""
    texts = [json.dumps({"domain": "ab"[n % 2]}) for n in range(rows.num_rows)]
    field = rows.schema.field("metadata")
    place = rows.column_names.index("metadata")
    return rows.set_column(place, field, pa.array(texts, field.type)), scores


def test_two_domains_that_pull_alike_raise_nothing(run: Run, seen: list[Seen]) -> None:
    assert named(planted(run, seen, domains)) == []


def test_a_healthy_run_raises_none_and_its_looks_are_those_of_its_shards(
    run: Run, seen: list[Seen]
) -> None:
    assert named(seen) == []
    for one in seen:  # a sample of each prompt, all of one weight
        assert one.looks is not None and one.looks.prompts == one.looks.rows == 16
        assert one.looks.weights == one.looks.weight_squares == one.looks.tokens
    assert [one.scores for one in planted(run, seen, lambda r, s: (r, s))] == [
        one.scores for one in seen
    ]


@pytest.mark.parametrize(
    ("figure", "change", "name"),
    [
        ("rollout_kl", lambda values: values + 3.0, "left_its_samples"),
        ("grad_norm", lambda values: [1.0, 1.1, 0.9, 40.0, 1.0], "gradient_spike"),
    ],
    ids=["a round of steps that are too long", "a spike"],
)
def test_a_fault_in_optimizer_steps_is_named(
    seen: list[Seen], figure: str, change: Callable[[Any], Any], name: str
) -> None:
    steps = dict(seen[1].steps or {})
    values = np.asarray(change(steps[figure]), dtype=np.float64)
    long = {n: np.resize(v, len(values)) for n, v in steps.items()}
    assert named([seen[0], replace(seen[1], steps={**long, figure: values})]) == [name]


def test_candidates_that_the_engine_dropped_are_named(seen: list[Seen]) -> None:
    config = seen[1].config
    asked = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"candidates": 4})}
    )
    assert named([replace(one, config=asked) for one in seen]) == ["candidates_dropped"]


def test_rounds_of_an_older_opd_raise_nothing_for_what_they_lack(seen: list[Seen]) -> None:
    old = [
        replace(one, scores=tuple(s.model_copy(update={"looks": None}) for s in one.scores))
        for one in seen
    ]
    assert named([replace(one, steps=None) for one in old]) == []


@pytest.fixture
def shuffled(run_copy: Path) -> Path:
    """Return the folder of a run whose second round says that its scores are of other rows."""
    path = run_copy / "store/runs/tiny/rounds/0001/score/main/manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["looks"] |= {"found": 0}
    path.write_bytes(forged(manifest))
    return run_copy


@pytest.mark.parametrize("command", [("run",), ("gate", "--round", "1")], ids=["run", "gate"])
def test_an_end_by_the_gate_tells_the_alarms_too(
    shuffled: Path, cli: Cli, command: tuple[str, ...]
) -> None:
    given = [*command, "-c", str(shuffled / "run.toml"), "--set", "gate.max_accuracy_drop=0.01"]
    file = shuffled / "store/runs/tiny/rounds/0000/eval/manifest.json"
    file.write_bytes(forged(json.loads(file.read_bytes()) | {"accuracy": 1.0}))
    ended = cli(*given, "--json")
    assert ended.code == 8 and "gate.max_accuracy_drop" in ended.result["error"]
    assert [one["name"] for one in ended.result["alarms"]] == ["scores_shuffled"]
    lines = cli(*given).stderr.splitlines()
    assert [line[:5] for line in lines] == ["wrong", "opd: "]


def test_an_alarm_that_cannot_be_judged_does_not_hide_what_the_gate_says(
    shuffled: Path, cli: Cli
) -> None:
    file = shuffled / "store/runs/tiny/rounds/0000/eval/manifest.json"
    file.write_bytes(forged(json.loads(file.read_bytes()) | {"accuracy": 1.0}))
    (shuffled / "store/runs/tiny/rounds/0000/rollout/manifest.json").write_text("{")
    limit = ("--set", "gate.max_accuracy_drop=0.01")
    ended = cli("gate", "-c", shuffled / "run.toml", "--round", "1", *limit, "--json")
    assert ended.code == 8 and "alarms" not in ended.result


def test_quickstart_tells_an_alarm_once(shuffled: Path, cli: Cli) -> None:
    (shuffled / "teacher").mkdir()  # a folder of that name is kept, and nothing is trained
    said = cli("quickstart", shuffled).stdout
    assert said.count("scores belong to other sequences") == 1


def test_status_run_and_report_say_the_same(shuffled: Path, cli: Cli) -> None:
    toml = shuffled / "run.toml"
    (alarm,) = cli.ok("status", "-c", toml)["alarms"]
    assert (alarm["name"], alarm["severity"], alarm["since"]) == ("scores_shuffled", "wrong", 1)
    assert cli.ok("run", "-c", toml)["alarms"] == [alarm]
    for command in ("status", "run"):
        said = " ".join(cli(command, "-c", toml).stdout.split())
        assert f"wrong: {alarm['words']} (since round 1). {alarm['advice']}." in said
    figures = gather(open_run(load_config(toml)), "tiny", rows=4)
    (found,) = findings(figures)
    assert (found.figure, found.since, found.advice) == (alarm["words"], 1, alarm["advice"])
