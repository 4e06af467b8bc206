"""Samples that a run stores, as its learner reads them: of all ids, they say all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.learner.feed.data import RoundData
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from schemas.scoresignal import SampleOf
from tests.support.runs import Cli
from tests.support.tiny import write_run

VOCAB = 17
"""Ids of the tiny models."""

EVERY = {"eval": None, "run.rounds": 1, "loss.kind": "reverse_kl"}
SAMPLES: dict[SampleOf, dict[str, object]] = {
    "student": {"score.k": 0, "rollout.sample": VOCAB},
    "teacher": {"score.k": 0, "score.sample": VOCAB, "loss.kind": "forward_kl"},
}


def first_step(folder: Path, cli: Cli, name: str, **changes: object) -> dict[str, Any]:
    """Train the first round of a run; return the figures of its first step."""
    config = write_run(folder, changes={**EVERY, "run.name": name, **changes}, file=f"{name}.toml")
    for stage in ("rollout", "score", "train"):
        cli.ok(stage, "-c", config, "--round", "0")
    (metrics,) = (folder / "store" / "runs" / name / "metrics").glob("*.parquet")
    found: dict[str, Any] = pq.read_table(metrics).to_pylist()[0]
    return found


@pytest.mark.parametrize("of", SAMPLES)
def test_a_sample_of_every_id_trains_as_the_whole_vocabulary_does(
    tmp_path: Path, cli: Cli, of: SampleOf
) -> None:
    changes = SAMPLES[of]
    kind = {"student": "reverse_kl", "teacher": "forward_kl"}[of]
    whole = {"loss.kind": kind, "score.k": VOCAB, "loss.estimator": "bucket"}
    sampled = first_step(tmp_path, cli, "sampled", **changes)
    expected = first_step(tmp_path, cli, "whole", **whole)
    for name in ("loss", kind, "grad_norm", "student_entropy"):
        assert sampled[name] == pytest.approx(expected[name], rel=1e-3), name
    assert expected[kind] > 0.01


def test_the_policy_gradient_over_a_sample_is_that_over_all_ids(tmp_path: Path, cli: Cli) -> None:
    """At given prefixes that is the gradient of the reverse KL."""
    sampled = first_step(tmp_path, cli, "policy", **SAMPLES["student"], **{"loss.kind": "opd"})
    whole = {"loss.kind": "reverse_kl", "score.k": VOCAB, "loss.estimator": "bucket"}
    expected = first_step(tmp_path, cli, "whole", **whole)
    for name in ("loss", "reverse_kl", "grad_norm"):
        assert sampled[name] == pytest.approx(expected[name], rel=1e-3), name


def test_the_better_sample_is_taken_and_none_that_does_not_suit(tmp_path: Path, cli: Cli) -> None:
    changes = {**EVERY, "score.k": 2, "score.sample": 3, "rollout.sample": 4}
    config = write_run(tmp_path, changes=changes)
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    run = open_run(load_config(config, ()))
    rollout, scored = run.rollout(0), run.score(0, "main")
    assert rollout is not None and scored is not None
    cases: list[tuple[tuple[SampleOf, ...], str | None]] = [
        (("student",), "student"),
        (("teacher", "student"), "teacher"),
        ((), None),
    ]
    for wanted, found in cases:
        data = RoundData(run.storage, rollout, {"main": scored}, keep=9, samples=wanted)
        sample = data.batch(np.arange(3)).teacher.sample
        assert (sample and sample.of) == found
        if sample is not None:
            there_TN = sample.chances_TN > 0
            assert there_TN.any(axis=1).all()
            assert (sample.ids_TN[there_TN] >= 0).all()


def test_a_teachers_sample_that_is_asked_for_and_not_there_ends_the_stage(
    tmp_path: Path, cli: Cli
) -> None:
    changes = {**EVERY, "loss.kind": "forward_kl", "loss.estimator": "sampled"}
    config = write_run(tmp_path, changes=changes)
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    outcome = cli("train", "-c", config, "--round", "0")
    assert outcome.code == 2
    assert "set score.sample" in outcome.stderr
