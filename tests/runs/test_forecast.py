"""What is left of a run: limits before the first round, estimates after it."""

import math
from pathlib import Path

from pipeline.runs.configsource import load_config
from pipeline.runs.forecast import forecast
from pipeline.runs.run import open_run
from tests.support.runs import Cli
from tests.support.tiny import write_run


def test_before_the_first_round_a_forecast_is_what_nothing_exceeds(tmp_path: Path) -> None:
    run = open_run(load_config(write_run(tmp_path)))
    ahead = forecast(run, first=0, rounds=2)
    assert (ahead.rounds, ahead.units, ahead.rows, ahead.basis) == (2, 8, 32, "limits")
    assert ahead.response_tokens == 32 * 12 and ahead.teacher_tokens == 32 * (40 + 12)
    assert ahead.cache_bytes == 32 * 12 * (6 * 4 + 16) and ahead.seconds == {}


def test_every_signal_counts_in_the_bytes_of_a_forecast(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    plain = forecast(open_run(load_config(config)), first=0, rounds=1).cache_bytes
    for more in ("score.tail_buckets=8", "score.draws=4", "rollout.candidates=3", "score.k=5"):
        run = open_run(load_config(config, [more]))
        assert forecast(run, first=0, rounds=1).cache_bytes > plain


def test_later_a_forecast_goes_by_the_last_scored_round(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    rollout, score = run.rollout(1), run.score(1, "main")
    assert rollout is not None and score is not None
    ahead = forecast(run, first=2, rounds=4)
    assert ahead.basis == "round 1" and (ahead.rounds, ahead.rows) == (2, 32)
    assert ahead.response_tokens == 2 * rollout.tokens
    assert ahead.cache_bytes == 2 * sum(unit.shard.bytes for unit in score.units)
    assert ahead.teacher_tokens == round(
        32 * score.teacher_tokens / (score.rows - score.reused_rows)
    )
    assert set(ahead.seconds) == {"rollout", "score", "train", "eval"}
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in ahead.seconds.values())


def test_a_forecast_is_within_the_limits_that_were_told_before(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    most = forecast(
        open_run(load_config(finished_run / "run.toml", ["run.name=x"])), first=0, rounds=1
    )
    now = forecast(run, first=2, rounds=3)
    assert now.response_tokens <= most.response_tokens
    assert now.teacher_tokens <= most.teacher_tokens


def test_plan_shows_what_is_left(finished_run: Path, cli: Cli) -> None:
    config = finished_run / "run.toml"
    assert "all 2 rounds are done" in cli("plan", "-c", config).stdout
    text = cli("plan", "-c", config, "--rounds", "3").stdout
    assert "1 of 3 rounds are left" in text and "by the rates of round 1" in text
    said = cli.ok("plan", "-c", config, "--rounds", "3")
    assert (said["rounds"], said["round"], said["target"]) == (1, None, 3)
    assert "rollout" not in said
