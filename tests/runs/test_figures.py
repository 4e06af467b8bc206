"""The JSON line of each stage, to the letter: keys, order and values."""

import json

import pytest

from cli.output import result_json
from pipeline.runs.figures import (
    Accuracy,
    EvalFigures,
    Figures,
    Noise,
    RewardFigures,
    ScoreFigures,
    TrainFigures,
)
from pipeline.runs.reporting import StageResult

COMMON = (
    '"run": "demo", "round": 2, "units": 1, "rows": 4, "tokens": 9, "manifest": null, '
    '"reused_rows": 3, "teacher_tokens": 7, "engine_start_s": 0.5, "seconds": 1.235'
)
NOISE = Noise(tokens=48, mean=0.25, max=0.5)
SUMMARY = {"grad_norm": 0.5, "loss": 1.5, "reverse_kl": 0.25}


@pytest.mark.parametrize(
    ("stage", "figures", "further"),
    [
        ("rollout", None, ""),
        (
            "score",
            ScoreFigures("main", {"a": 2}, NOISE, 0.75),
            ', "teacher": "main", "sibling_rows": {"a": 2}, "noise": {"tokens": 48, "mean": 0.25, '
            '"max": 0.5}, "reverse_kl": 0.75',
        ),
        (
            "score",
            ScoreFigures("main", {}, None, None),
            ', "teacher": "main", "sibling_rows": {}, "noise": null, "reverse_kl": null',
        ),
        (
            "grade",
            RewardFigures(0.5, 3, {"raised": 1}, 2, 1),
            ', "reward": 0.5, "rewarded": 3, "faults": {"raised": 1}, "groups": 2, '
            '"groups_without_spread": 1',
        ),
        (
            "train",
            TrainFigures(40, 0, SUMMARY, None, "store/checkpoints/0001", 0.25),
            ', "steps": 40, "stale_rows": 0, "grad_norm": 0.5, "loss": 1.5, "reverse_kl": 0.25, '
            '"first_rollout_kl": null, "checkpoint": "store/checkpoints/0001", '
            '"data_wait_share": 0.25',
        ),
        (
            "eval",
            EvalFigures("teacher/main", Accuracy(0.5, 0.125, 0.25, 0.75, 2, {"2": 0.625})),
            ', "subject": "teacher/main", "accuracy": 0.5, "standard_error": 0.125, '
            '"accuracy_low": 0.25, "accuracy_high": 0.75, "samples": 2, "pass_at": {"2": 0.625}',
        ),
        ("eval", EvalFigures("student", None), ', "subject": "student"'),
    ],
)
def test_the_figures_of_a_stage_follow_what_all_stages_have(
    stage: str, figures: Figures | None, further: str
) -> None:
    result = StageResult(
        stage=stage,
        run="demo",
        round=2,
        units=1,
        rows=4,
        tokens=9,
        manifest=None,
        reused_rows=3,
        teacher_tokens=7,
        engine_start_s=0.5,
        figures=figures,
    )
    line = json.dumps(result_json(result, 1.23456))
    assert line == f'{{"stage": "{stage}", {COMMON}{further}}}'
