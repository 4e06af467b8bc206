"""Samples in a run's cache: scored, verified, exported, reprocessed, merged and reused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.scores.candidates import own_counts, split_candidates
from pipeline.scores.columns import scores_of
from pipeline.scores.inclusion import inclusions, sampled_mass
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.records import read_record
from pipeline.store.storage import Storage
from schemas.columns import flat_values, list_lengths
from schemas.keys import scorer_key
from schemas.ragged import padded
from schemas.records.scores import ScorerIdentity
from tests.support.runs import Cli
from tests.support.tiny import write_run

SAMPLED = {
    "score.k": 0,
    "score.sample": 6,
    "score.temperatures": [2.0, 0.5],
    "score.codec": "packed-v1",
    "rollout.sample": 4,
    "rollout.candidates": 1,
    "eval": None,
}


def assert_samples(config: Path) -> None:
    """Make sure that rollout and scores hold the samples that the interface of a loss names."""
    run = open_run(load_config(config, ()))
    rollout, scored = run.rollout(0), run.score(0, "main")
    assert rollout is not None and scored is not None
    for rolled, unit in zip(rollout.units, scored.units, strict=True):
        rows = read_rollout(run.storage, rolled.shard)
        scores = scores_of(read_scores(run.storage, unit.shard, scorer=scored.scorer))
        tokens = len(scores.token_logprob)
        assert scores.candidate_ids is not None and scores.candidate_logprobs is not None
        assert scores.sample_logprobs is not None
        counts = own_counts(rows)
        counts = np.full(tokens, 4) if counts is None else counts
        mine = padded(flat_values(rows, "student_sample_ids"), counts, fill=-1)
        likeliest, own = split_candidates(scores.candidate_ids, mine.shape[1])
        np.testing.assert_array_equal(own, mine)
        np.testing.assert_array_equal(np.isneginf(scores.candidate_logprobs[:, 1:]), mine < 0)
        np.testing.assert_array_equal(likeliest[:, 0], flat_values(rows, "student_topk_ids"))
        nats = flat_values(rows, "student_sample_logprobs")
        logprobs = padded(nats, counts, fill=-np.inf)
        chances = inclusions(logprobs, np.zeros(tokens))
        parts = np.exp(logprobs) / np.where(mine < 0, 1.0, chances)
        np.testing.assert_allclose(parts.sum(axis=1), 1.0, atol=1e-5)
        assert scores.topk_ids.shape == (tokens, 0)
        theirs = np.exp(scores.sample_logprobs)
        parts = theirs / inclusions(scores.sample_logprobs, sampled_mass(scores))
        np.testing.assert_allclose(parts.sum(axis=1), 1.0, atol=1e-5)


def scorer_signal(root: Path, scorer: str) -> dict[str, Any]:
    """Return the signal of a scorer in words."""
    return read_record(Storage(str(root)), scorer_key(scorer), ScorerIdentity).signal


@pytest.mark.parametrize("most", [0, 9])
def test_samples_are_kept_as_other_scores_are(tmp_path: Path, cli: Cli, most: int) -> None:
    changes = SAMPLED | ({"rollout.sample_most": most} if most else {})
    config, root = write_run(tmp_path, changes=changes), tmp_path / "store"
    assert cli.ok("plan", "-c", config)["cache_bytes"] > 0
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    assert_samples(config)
    again = cli.ok("cache", "verify", "-c", config, "--rescore", "99")
    assert again["rows"] == 16
    assert again["drift"]["same_topk"] > 0.99  # of the sample, which rounding may move
    assert again["drift"]["topk_logprobs"]["max"] < 1 / 16
    (scorer,) = Storage(str(root)).folders("cache")
    assert cli.ok("cache", "stats", scorer, "-c", config)["scorers"][0]["tokens"] > 16
    target = tmp_path / "scores.parquet"
    cli.ok("cache", "export", scorer, "-c", config, "--format", "parquet", "--to", target)
    rows = pq.read_table(target)
    assert "topk_ids" not in rows.column_names
    tokens = list_lengths(rows, "token_logprob")
    assert (list_lengths(rows, "sample_ids") == 6 * tokens).all()
    own = list_lengths(rows, "candidate_ids")
    assert own.sum() <= 5 * tokens.sum() and (most > 0 or (own == 5 * tokens).all())
    above, below = flat_values(rows, "log_normalisers").reshape(-1, 2).T
    assert (above > 0).all() and (below < 0).all()  # log Z is above 0 at T = 2, and below at 1/2

    merged = cli.ok("cache", "merge", "--root", tmp_path / "other", "--from-root", root)
    assert merged["scorers"][0]["units"] > 0
    named = write_run(tmp_path, changes={**changes, "run.name": "again"})
    cli.ok("rollout", "-c", named, "--round", "0")
    assert cli.ok("score", "-c", named, "--round", "0")["teacher_tokens"] == 0

    make: tuple[Any, ...] = ("cache", "reprocess", "-c", config, "--from", scorer)
    typed = cli.ok(*make, "--to", "typed", "--codec", "typed-v1", "--drop-candidates")
    assert typed["complete"]
    assert scorer_signal(root, typed["scorer"])["temperatures"] == [2.0, 0.5]
    bare = cli.ok(*make, "--to", "bare", "--drop-candidates", "--drop-temperatures")
    assert "temperatures" not in scorer_signal(root, bare["scorer"])
    for arguments, words in (
        (("--to", "x", "--drop-sample", "--drop-candidates"), "nothing would be kept"),
        (("--to", "x", "--top-p", "0.5"), "what lies outside k = 0"),
        (("--to", "x", "--from", "typed", "--weight", "0.5", "--weight", "0.5"), "without a top-k"),
    ):
        outcome = cli(*make, *arguments)
        assert outcome.code == 2 and words in outcome.stderr, outcome.stderr


@pytest.mark.parametrize("k", [2, 5])
def test_a_sample_beside_a_top_k_goes_with_it(k: int, tmp_path: Path, cli: Cli) -> None:
    changes = {"score.k": k, "score.sample": 3, "score.top_p": 0.9, "eval": None}
    config = write_run(tmp_path, changes=changes, teachers=("left", "right"))
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    scorer = next(iter(Storage(str(tmp_path / "store")).folders("cache")))
    make: tuple[Any, ...] = ("cache", "reprocess", "-c", config, "--from", scorer)
    outcome = cli(*make, "--to", "x", "--k", "1")
    assert outcome.code == 2 and f"outside k = {k} and top_p = 0.9" in outcome.stderr
    assert cli.ok(*make, "--to", "small", "--k", "1", "--drop-sample")["complete"]
