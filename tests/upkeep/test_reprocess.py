"""Scores made from stored ones: in units like any scorer's, trained on without the teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.scores.columns import scores_of
from pipeline.shards.scores import read_scores
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run

SMALL = ("--k", "2", "--codec", "packed-v1")


def scorer_of(folder: Path) -> str:
    key = "store/runs/tiny/rounds/0000/score/main/manifest.json"
    return str(json.loads((folder / key).read_text())["scorer"])


def reprocessed(cli: Cli, config: Path, *arguments: str) -> dict[str, Any]:
    source = scorer_of(config.parent)
    return cli.ok("cache", "reprocess", "-c", config, "--from", source, "--to", "small", *arguments)


def test_a_run_trains_on_reprocessed_scores_and_the_teacher_is_not_needed(
    run_copy: Path, cli: Cli
) -> None:
    made = reprocessed(cli, run_copy / "run.toml", *SMALL)
    assert (made["units"], made["complete"]) == (8, True)
    shutil.rmtree(run_copy / "main")
    changes = {"run.name": "small", "teachers.main.scores": "small", "eval": None}
    config = write_run(run_copy, changes=changes)
    shutil.rmtree(run_copy / "main")  # written once more with the configuration
    for stage in ("rollout", "score", "train"):
        result = cli.ok(stage, "-c", config, "--round", "0")
        assert result.get("teacher_tokens", 0) == 0
    run = open_run(load_config(config, ()))
    manifest = run.score(0, "main")
    assert manifest is not None
    assert manifest.scorer == made["scorer"]
    scores = scores_of(read_scores(run.storage, manifest.units[0].shard, scorer=manifest.scorer))
    assert scores.topk_ids.shape[1] == 2

    cli.ok("rollout", "-c", config, "--round", "1")  # by another student than the first run's
    outcome = cli("score", "-c", config, "--round", "1")
    assert outcome.code == 2
    assert "lacks some of this round's sequences" in outcome.stderr


def test_typed_again_it_makes_only_what_is_new(run_copy: Path, cli: Cli) -> None:
    config = run_copy / "run.toml"
    assert reprocessed(cli, config, *SMALL)["units"] == 8
    again = reprocessed(cli, config, *SMALL)
    assert (again["units"], again["rows"], again["complete"]) == (0, 0, True)


def test_a_chain_of_reprocessings_names_its_origin(run_copy: Path, cli: Cli) -> None:
    config, first = run_copy / "run.toml", reprocessed(cli, run_copy / "run.toml", *SMALL)
    again = cli.ok(
        "cache", "reprocess", "-c", config, "--from", "small", "--to", "open", "--codec", "typed-v1"
    )
    record = json.loads((run_copy / f"store/cache/{again['scorer']}/scorer.json").read_text())
    assert record["lineage"] == [first["scorer"]]
    assert record["signal"] == {"k": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--k", "99"), 2, "k = 99 is more than"),
        ((), 2, "nothing would change"),
        (("--codec", "zip"), 2, "typed-v1, packed-v1"),
    ],
)
def test_what_cannot_be_made_is_said(
    arguments: tuple[str, ...], code: int, words: str, run_copy: Path, cli: Cli
) -> None:
    source, config = scorer_of(run_copy), run_copy / "run.toml"
    before = sorted((run_copy / "store/cache").iterdir())
    outcome = cli("cache", "reprocess", "-c", config, "--from", source, "--to", "x", *arguments)
    assert outcome.code == code, outcome.stderr
    assert words in outcome.stderr
    assert sorted((run_copy / "store/cache").iterdir()) == before


def test_a_name_is_not_given_twice(run_copy: Path, cli: Cli) -> None:
    config, source = run_copy / "run.toml", scorer_of(run_copy)
    reprocessed(cli, config, *SMALL)
    outcome = cli("cache", "reprocess", "-c", config, "--from", source, "--to", "small", "--k", "3")
    assert outcome.code == 5
    assert "is taken by scorer" in outcome.stderr


@pytest.mark.parametrize("name", ["a/b", "../x", "", "a\n"])
def test_a_name_that_is_no_name_is_refused(name: str, run_copy: Path, cli: Cli) -> None:
    source, config = scorer_of(run_copy), run_copy / "run.toml"
    outcome = cli("cache", "reprocess", "-c", config, "--from", source, "--to", name, "--k", "2")
    assert outcome.code == 2
    assert "a scorer cannot be called" in outcome.stderr
    assert not (run_copy / "store/scorers").exists()


def test_an_unknown_scorer_is_named(run_copy: Path, cli: Cli) -> None:
    outcome = cli(
        "cache", "reprocess", "-c", run_copy / "run.toml", "--from", "nobody", "--to", "x"
    )
    assert outcome.code == 2
    assert "0 scorers have a key that begins with 'nobody'" in outcome.stderr


def test_a_run_trains_on_a_mixture_of_two_teachers(run_copy: Path, cli: Cli) -> None:
    first = scorer_of(run_copy)
    shutil.move(run_copy / "main", run_copy / "first")
    make_model(run_copy / "main", teacher=True, seed=5)
    other = write_run(run_copy, changes={"run.name": "other", "eval": None})
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", other, "--round", "0")
    path = run_copy / "store/runs/other/rounds/0000/score/main/manifest.json"
    second = json.loads(path.read_text())["scorer"]
    assert second != first
    mix = (
        "--from",
        second,
        "--from",
        first,
        "--to",
        "both",
        "--weight",
        "0.25",
        "--weight",
        "0.75",
    )
    made = cli.ok("cache", "reprocess", "-c", other, *mix)
    assert (made["units"], made["complete"]) == (4, True)
    changes = {"run.name": "mixed", "teachers.main.scores": "both", "eval": None}
    config = write_run(run_copy, changes=changes)
    for stage in ("rollout", "score", "train"):
        assert cli.ok(stage, "-c", config, "--round", "0").get("teacher_tokens", 0) == 0

    lacking = (
        "--from",
        first,
        "--from",
        second,
        "--to",
        "more",
        "--weight",
        "0.5",
        "--weight",
        "0.5",
    )
    outcome = cli("cache", "reprocess", "-c", other, *lacking)
    assert outcome.code == 2
    assert "are not scored by scorer" in outcome.stderr
