"""The figures of a report are those of the stored records, read here without its code."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.report.figures import RunFigures, gather
from pipeline.report.stored.records import read_records
from pipeline.report.stored.rounds import of_nothing, round_frame, step_frame, thinned
from pipeline.runs.configsource import load_config
from pipeline.runs.grades.intervals import accuracy_interval, wilson
from pipeline.runs.run import Run, open_run
from schemas.records.runs import EvalManifest

STAGES = ("rollout", "score", "train", "eval")


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return open_run(load_config(finished_run / "run.toml"))


@pytest.fixture(scope="module")
def figures(run: Run) -> RunFigures:
    return gather(run, run.name, rows=4)


def record(folder: Path, *parts: str) -> dict[str, Any]:
    """Return a manifest of a round, as plain JSON."""
    path = folder.joinpath("store", "runs", "tiny", "rounds", *parts, "manifest.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def times(folder: Path, number: str) -> list[dict[str, Any]]:
    """Return what the calls of a round told."""
    place = folder / "store" / "runs" / "tiny" / "metrics" / "times" / number
    return [row for path in sorted(place.iterdir()) for row in pq.read_table(path).to_pylist()]


def test_each_round_has_the_figures_of_its_manifests(
    figures: RunFigures, finished_run: Path
) -> None:
    for index, row in enumerate(figures.rounds.to_dicts()):
        number = f"{index:04d}"
        graded, scored = (
            record(finished_run, number, "eval"),
            record(finished_run, number, "score/main"),
        )
        rolled, trained = (
            record(finished_run, number, "rollout"),
            record(finished_run, number, "train"),
        )
        sizes = sum(unit["shard"]["bytes"] for unit in scored["units"])
        expected = {
            "round": index,
            "accuracy": graded["accuracy"],
            "eval_stopped": graded["stopped"],
            "reverse_kl": scored["reverse_kl"],
            "reverse_kl_high": scored["reverse_kl"] + 1.96 * scored["reverse_kl_error"],
            "teacher_tokens": scored["teacher_tokens"],
            "reused_rows": scored["reused_rows"],
            "paid_rows": scored["rows"] - scored["reused_rows"],
            "paid_bytes": sizes * (1 - scored["reused_rows"] / scored["rows"]),
            "response_tokens": rolled["tokens"] / rolled["rows"],
            "rollout_kl": trained["rollout_kl"],
            "trained_reverse_kl": trained["summary"]["reverse_kl"],
            "steps": trained["steps"],
            **{
                n: v for n, v in trained["summary"].items() if n not in ("reverse_kl", "rollout_kl")
            },
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_times_and_rates_are_those_of_the_calls(figures: RunFigures, finished_run: Path) -> None:
    for index, row in enumerate(figures.rounds.to_dicts()):
        calls = times(finished_run, f"{index:04d}")
        for stage in STAGES:
            mine = [call for call in calls if call["stage"] == stage]
            seconds = sum(call["seconds"] for call in mine)
            assert row[f"seconds_{stage}"] == pytest.approx(seconds)
            assert row[f"rate_{stage}"] == pytest.approx(sum(c["tokens"] for c in mine) / seconds)
        assert row["seconds"] == pytest.approx(sum(call["seconds"] for call in calls))
        waits = [call for call in calls if call.get("data_wait_share") is not None]
        waited = sum(c["data_wait_share"] * c["seconds"] for c in waits)
        assert row["data_wait_share"] == pytest.approx(waited / sum(c["seconds"] for c in waits))


def test_steps_are_those_that_were_stored(figures: RunFigures, finished_run: Path) -> None:
    rows: list[dict[str, Any]] = []
    for index in range(2):
        key = record(finished_run, f"{index:04d}", "train")["metrics"]["key"]
        rows += pq.read_table(finished_run / "store" / key).to_pylist()
    assert figures.steps.drop("round").to_dicts() == rows
    assert figures.steps["round"].to_list() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kept", "empty"),
    [
        ((), set()),
        (("score.k=0", "score.sample=4"), {"reverse_kl"}),
        (("score.k=0", "rollout.sample=4"), {"forward_kl"}),
    ],
)
def test_sums_over_ids_that_nobody_kept_are_no_figures(
    finished_run: Path, kept: tuple[str, ...], empty: set[str]
) -> None:
    changed = open_run(load_config(finished_run / "run.toml", kept))
    absent = of_nothing(changed.config)
    assert absent == empty | ({"student_mass", "teacher_mass"} if kept else set())
    records = read_records(changed)
    steps, rounds = step_frame(records).columns, round_frame(records).columns
    assert not absent & set(steps) and not (absent - {"reverse_kl"}) & set(rounds)
    assert "loss" in steps and "reverse_kl" in rounds, "that of the scores says something"


def test_costs_add_up_from_round_to_round(figures: RunFigures) -> None:
    spent = figures.rounds["teacher_tokens"].to_list()
    assert figures.rounds["teacher_tokens_so_far"].to_list() == [spent[0], sum(spent)]


def test_many_steps_become_means_of_neighbours_with_their_range() -> None:
    steps = pl.DataFrame(
        {"step": range(1000), "round": [0] * 1000, "loss": [float(i % 4) for i in range(1000)]}
    )
    few = thinned(steps, most=250)
    assert len(few) == 250
    assert set(few["loss"]) == {1.5}
    assert (set(few["loss_low"]), set(few["loss_high"])) == ({0.0}, {3.0})
    assert few["step"].to_list() == list(range(0, 1000, 4))
    assert thinned(steps, most=1000).equals(steps)


# --- intervals ---


def evaluated(accuracy: float, error: float, rows: int) -> EvalManifest:
    fields: dict[str, Any] = {"run": "r", "round": 0, "subject": "student", "units": ()}
    fields |= {"rows": rows, "tokens": 0, "accuracy": accuracy, "standard_error": error}
    return EvalManifest.model_construct(None, **fields, stopped=1.0)


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    known = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605)}
    known |= {(0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (right, count), ends in known.items():
        found = wilson(right / count, count)
        assert (round(found.low, 4), round(found.high, 4)) == ends


def test_several_samples_of_a_prompt_count_for_what_they_are_worth() -> None:
    # two samples of each of 100 prompts, always alike: 100 trials, whatever the 200 rows say
    error = math.sqrt(0.25 / 100)
    found = accuracy_interval(evaluated(0.5, error, 200), samples=2)
    assert found == pytest.approx(wilson(0.5, 100))
    assert accuracy_interval(evaluated(1.0, 0.0, 200), samples=2) == wilson(1.0, 100)


def test_grades_beyond_a_share_have_the_normal_interval() -> None:
    found = accuracy_interval(evaluated(3.0, 0.5, 40), samples=1)
    assert found == pytest.approx((3.0, 3.0 - 1.96 * 0.5, 3.0 + 1.96 * 0.5), abs=1e-3)
