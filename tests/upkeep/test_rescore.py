"""Stored scores held against the teacher: figures against loops, and what is read and refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.scores.drift import differences, drift_of
from pipeline.scores.scores import Scores
from pipeline.store.storage import Storage
from pipeline.upkeep.rescore import choose, stored_units
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run

V = 9


def scorer_of(folder: Path) -> str:
    (found,) = Storage(str(folder / "store")).folders("cache")
    return found


# --- the command ---


def test_scores_of_the_same_engine_have_not_moved(finished_run: Path, cli: Cli) -> None:
    config, scorer = finished_run / "run.toml", scorer_of(finished_run)
    before = sorted(path for path in (finished_run / "store").rglob("*"))
    found = cli.ok("cache", "verify", scorer[:8], "--rescore", "10", "-c", config)
    assert (found["scorer"], found["teacher"], found["rows"]) == (scorer, "main", 10)
    assert found["teacher_tokens"] > found["tokens"] > 10
    assert found["stored"]["dtype"] == found["now"]["dtype"] == "float32"
    drift = found["drift"]
    assert drift["token_logprob"]["max"] < 1e-5
    assert drift["topk_logprobs"]["max"] < 5e-3  # float16 of the codec
    assert drift["topk_logprobs"]["max"] >= drift["topk_logprobs"]["p99"] > 0
    assert drift["same_topk"] == 1.0
    assert 0 <= drift["kl_mean"] <= drift["kl_max"] < 1e-5
    assert found["exit_code"] == 0
    assert sorted(path for path in (finished_run / "store").rglob("*")) == before


def test_another_dtype_shows_and_a_tolerance_refuses_it(finished_run: Path, cli: Cli) -> None:
    half = ("--rescore", "64", "--set", "teachers.main.dtype=bfloat16")
    arguments = ("cache", "verify", "-c", finished_run / "run.toml", *half)
    found = cli.ok(*arguments)
    assert found["rows"] == 32
    assert (found["stored"]["dtype"], found["now"]["dtype"]) == ("float32", "bfloat16")
    drift, token = found["drift"], found["drift"]["token_logprob"]
    assert token["max"] >= token["p99"] > token["mean"] > 1e-4
    assert drift["kl_mean"] > 1e-6
    assert cli.ok(*arguments, "--tolerance", str(token["max"] * 1.01))["exit_code"] == 0
    outcome = cli(*arguments, "--tolerance", str(token["max"] * 0.99), "--json")
    assert (outcome.code, outcome.result["exit_code"]) == (4, 4)
    shown = cli(*arguments, "--tolerance", "1e-6")
    assert shown.code == 4
    for word in ("sampled token", "top-k, common ids", "KL(stored‖new)", "above 1e-06"):
        assert word in shown.stdout


def test_a_seed_fixes_the_rows(finished_run: Path, cli: Cli) -> None:
    rows = ("cache", "verify", "-c", finished_run / "run.toml", "--rescore", "3", "--seed")
    tokens = [cli.ok(*rows, str(seed))["tokens"] for seed in (1, 1, 2, 3, 4)]
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) > 1


def test_every_signal_can_be_scored_again(tmp_path: Path, cli: Cli) -> None:
    changes = {
        "score.codec": "packed-v1",
        "score.top_p": 0.9,
        "score.tail_buckets": 3,
        "score.draws": 2,
        "score.sample": 3,
        "rollout.candidates": 2,
        "rollout.sample": 3,
        "eval": None,
    }
    config = write_run(tmp_path, changes=changes, teachers=("left", "right"))
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    rows = 0
    for scorer in Storage(str(tmp_path / "store")).folders("cache"):
        found = cli.ok("cache", "verify", scorer, "-c", config, "--rescore", "99")
        rows += found["rows"]
        assert found["drift"]["token_logprob"]["max"] < 1e-5
        assert found["drift"]["topk_logprobs"]["max"] < 1 / 64 + 1e-3  # half a step of the grid
        assert found["drift"]["same_topk"] == 1.0
        assert found["drift"]["kl_max"] < 1e-3
    assert rows == 16


def test_another_model_is_refused_with_exit_3(run_copy: Path, cli: Cli) -> None:
    make_model(run_copy / "other", seed=5, teacher=True)
    config = run_copy / "run.toml"
    arguments = ("cache", "verify", "-c", config, "--rescore", "2", "--set")
    outcome = cli(*arguments, "teachers.main.model=other")
    assert outcome.code == 3
    assert scorer_of(run_copy) in outcome.stderr
    missing = cli(*arguments, "teachers.main.model=nowhere")
    assert missing.code == 2
    assert "nowhere" in missing.stderr
    several = write_run(run_copy, changes={"teachers.second.model": "other"}, file="two.toml")
    assert cli.ok("cache", "verify", "-c", several, "--rescore", "2")["teacher"] == "main"


def test_sequences_that_no_run_has_any_more_are_named(run_copy: Path, cli: Cli) -> None:
    arguments = ("cache", "verify", "-c", run_copy / "run.toml", "--rescore", "4")
    rounds = run_copy / "store/runs/tiny/rounds"
    manifest = json.loads((rounds / "0000/rollout/manifest.json").read_text())
    for unit in manifest["units"]:
        (run_copy / "store" / unit["shard"]["key"]).unlink()
    outcome = cli(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["rows"] == 4
    assert cli.ok(*arguments[:-1], "99")["rows"] == 16  # those of round 1
    for index in ("0000", "0001"):
        (rounds / index / "score/main/manifest.json").unlink()
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert "no run" in outcome.stderr


def test_options_that_do_not_go_together_are_refused(finished_run: Path, cli: Cli) -> None:
    config, root = finished_run / "run.toml", str(finished_run / "store")
    assert cli("cache", "verify", "--root", root, "--rescore", "2").code == 2
    assert cli("cache", "verify", "--rescore", "2").code == 2
    assert cli("cache", "verify", "-c", config, "--rescore", "2", "--sample", "2").code == 2
    assert cli("cache", "verify", "-c", config, "--tolerance", "0.1").code == 2
    assert cli("cache", "verify", "none", "-c", config, "--rescore", "2").code == 2


def test_only_shards_of_chosen_rows_are_looked_at(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml", [f"run.root={finished_run / 'store'}"]))
    units = stored_units(run.storage, scorer_of(finished_run))
    assert len(units) == 8
    for seed in range(20):
        chosen = choose(run.storage, units, 2, seed=seed, note=print)
        assert len(chosen) <= 2
        assert sum(len(places) for _, places in chosen) == 2
    everything = choose(run.storage, units, 32, seed=0, note=print)
    assert [places for _, places in everything] == [[0, 1, 2, 3]] * 8


# --- the figures ---


def random_scores(seed: int, k: int, *, tokens: int = 40) -> Scores:
    """Return the scores of random distributions over `V` ids."""
    random = np.random.default_rng(seed)
    logits = np.random.default_rng(0).normal(size=(tokens, V)) * 2  # shared: sides are alike
    logits = logits + 0.3 * random.normal(size=(tokens, V))
    logprobs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    order = np.argsort(-logprobs, axis=1)[:, :k]
    top = np.take_along_axis(logprobs, order, 1)
    rest = np.log(np.maximum(1 - np.exp(top).sum(axis=1), 1e-30))
    return Scores(
        topk_ids=order.astype(np.int32),
        topk_logprobs=top.astype(np.float32),
        tail_logprobs=rest.astype(np.float32),
        token_logprob=logprobs[:, 3].astype(np.float32),
        token_rank=np.ones(tokens, np.int32),
        entropy=np.zeros(tokens, np.float32),
    )


@pytest.mark.parametrize("k", [1, 3, 6])
def test_figures_agree_with_a_loop(k: int) -> None:
    stored, new = random_scores(1, k), random_scores(2, k)
    found = differences(stored, new)
    topk = []
    for t in range(len(stored.tail_logprobs)):
        p, q = (
            dict(zip(s.topk_ids[t].tolist(), s.topk_logprobs[t].tolist(), strict=True))
            for s in (stored, new)
        )
        common = p.keys() & q.keys()
        topk += [abs(p[i] - q[i]) for i in common]
        assert found.same[t] == (p.keys() == q.keys())
        gap = abs(float(stored.token_logprob[t]) - float(new.token_logprob[t]))
        assert found.token[t] == pytest.approx(gap)
        inside_p, inside_q = (sum(np.exp(s[i]) for i in common) for s in (p, q))
        kl = sum(np.exp(p[i]) * (p[i] - q[i]) for i in common)
        kl += (1 - inside_p) * np.log((1 - inside_p) / (1 - inside_q))
        assert found.kl[t] == pytest.approx(kl, abs=1e-5)
    assert np.sort(found.topk) == pytest.approx(np.sort(topk))
    drift = drift_of([found, found])
    assert drift.topk_logprobs.max == pytest.approx(max(topk))
    assert drift.kl_mean == pytest.approx(found.kl.mean())
    assert drift.same_topk == found.same.mean()


def test_equal_scores_have_no_drift_whatever_they_hold() -> None:
    whole = random_scores(1, V)  # nothing outside the top-k
    ragged = random_scores(1, 3)
    ragged.topk_ids[::2, 2], ragged.topk_logprobs[::2, 2] = -1, -np.inf
    ragged.token_logprob[0] = -np.inf
    for scores in (whole, ragged):
        drift = drift_of([differences(scores, scores)])
        assert drift.token_logprob.max == drift.topk_logprobs.max == 0.0
        assert drift.kl_max < 1e-12
        assert drift.same_topk == 1.0


def test_sides_without_a_common_id_and_an_id_that_became_impossible_are_finite() -> None:
    stored, new = random_scores(1, 2), random_scores(1, 2)
    new.topk_ids[:] = V
    new.topk_ids[:, 1] += 1
    found = differences(stored, new)
    assert not len(found.topk)
    assert not found.same.any()
    assert found.kl == pytest.approx(0.0, abs=1e-6)  # all is rest on both sides
    assert drift_of([found]).topk_logprobs.max == 0.0
    impossible = random_scores(1, 2)
    impossible.topk_logprobs[:, 0] = -np.inf
    assert np.isfinite(differences(stored, impossible).kl).all()
    assert (differences(stored, impossible).kl > 0.1).all()
