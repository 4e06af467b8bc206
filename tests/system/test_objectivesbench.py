"""The benchmark of objectives: what it tells of seeds, and that it goes on from what is kept."""

import json
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.__main__ import main
from benchmarks.kit.measure import Spread
from benchmarks.objectives import DEFAULT, OBJECTIVES, SLOW, Learned, intervals, result
from pipeline.quickstart.folder import config_text, make_quickstart
from schemas.config.file import parse_config
from schemas.config.loss import LossKind
from tests.support.tiny import make_model


def untaught_quickstart(folder: Path) -> None:
    """Make the quickstart's files with models that nobody has trained."""
    for name in ("teacher", "student"):
        make_model(folder / name, teacher=name == "teacher")
    text = config_text(root="store", seed=0, rounds=2, engine="hf")
    make_quickstart(folder, text, seed=0, rounds=2, report=lambda name, step, total: None)


def learned(*accuracy: float, teacher: float = 1.0) -> Learned:
    return Learned(accuracy, tuple(1.0 - value for value in accuracy), teacher)


def test_an_objective_reaches_the_teacher_where_it_does_with_every_seed() -> None:
    found = result(
        {
            DEFAULT: [learned(0.5, 0.99), learned(0.5, 0.97)],
            "jsd": [learned(0.5, 0.9, teacher=0.94), learned(0.5, 0.99)],
            "tvd": [learned(0.9, 0.94), learned(0.5, 1.0)],
        }
    )
    assert found.figures == {
        "objectives_that_reach": 2.0,
        "objectives_measured": 3.0,
        "fewest_seeds": 2.0,
        "default_least": 0.97,
    }
    told = found.nested["objectives"]
    assert [one["name"] for one in told] == [DEFAULT, "jsd", "tvd"]
    assert told[1]["accuracy"] == [0.9, 0.99]
    assert told[1]["of_teacher"] == [0.9574, 0.99]
    assert found.cases[2]["of_teacher"] == Spread(0.97, 0.94, 1.0)
    last = found.cases[2]["last_reverse_kl"]
    assert isinstance(last, Spread) and last.max == pytest.approx(0.06)


def test_intervals_are_of_the_mean_over_seeds_and_none_is_made_up_for_one() -> None:
    two = intervals([(0.25, 1.0), (0.75, 1.0)])
    assert two == [
        {"mean": 0.5, "plus_minus": pytest.approx(12.71 * 0.25, rel=1e-3)},
        {"mean": 1.0, "plus_minus": 0.0},
    ]
    assert intervals([(0.25,)]) == [{"mean": 0.25, "plus_minus": None}]


def test_every_objective_is_a_run_of_the_quickstart_that_differs_in_it_alone() -> None:
    text = config_text(root="store", seed=0, rounds=2, engine="hf")
    for words in OBJECTIVES.values():
        config = parse_config(text, where="run.toml", overrides=words)
        assert f"loss.kind={config.loss.kind}" in words
        assert {word.split(".")[0] for word in words if word != SLOW} <= {
            "loss",
            "score",
            "rollout",
        }
    kinds = {words[0] for words in OBJECTIVES.values()}
    assert kinds == {f"loss.kind={kind}" for kind in get_args(LossKind) if kind != "sft"}


@pytest.mark.slow
def test_what_is_done_is_kept_and_told_without_doing_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["objectives", "--quick", "--json", "--data", str(tmp_path)]
    assert main([*words, "--minutes", "0"]) == 2
    assert "more --minutes" in capsys.readouterr().err
    untaught_quickstart(tmp_path / "seed-0")
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(one["accuracy_by_round"]) for one in first["objectives"]] == [2, 2]
    assert main([*words, "--minutes", "0"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["objectives"] == first["objectives"]
