"""A run on paper, at any size."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.forecast import forecast
from pipeline.store.storage import Storage
from pipeline.upkeep.scale import BYTES, SIZES, Scale, scale
from tests.support.minimal import minimal_run
from tests.support.runs import Cli

DAYS = 7.0


def laid_out(*overrides: str, days: float = DAYS, sizes: tuple[int, ...] = SIZES) -> Scale:
    run = minimal_run(Storage("memory://scale"), *overrides)
    return scale(run.config, forecast(run, first=0, rounds=1), days=days, sizes=sizes)


@given(st.integers(1, 10**13), st.integers(1, 50), st.integers(1, 8))
def test_all_but_the_index_grows_with_the_tokens(tokens: int, factor: int, samples: int) -> None:
    found = laid_out(f"rollout.samples_per_prompt={samples}", sizes=(tokens, factor * tokens))
    small, large = found.sizes
    assert large.puts_per_s == pytest.approx(factor * small.puts_per_s)
    assert large.requests_usd == pytest.approx(factor * small.requests_usd)
    assert large.store_bytes == pytest.approx(factor * small.store_bytes, abs=factor)
    assert large.index_bytes <= factor * small.index_bytes + factor


def test_larger_units_and_fewer_ids_cost_less_and_more_days_ask_for_less_a_second() -> None:
    plain = laid_out().sizes[-1]
    assert laid_out("rollout.prompts_per_unit=1").sizes[-1].puts_per_s > 2 * plain.puts_per_s
    assert laid_out("score.k=4").sizes[-1].store_bytes < plain.store_bytes
    assert laid_out("score.codec=packed-v1").sizes[-1].month_usd < plain.month_usd
    slow = laid_out(days=2 * DAYS).sizes[-1]
    assert slow.gets_per_s == pytest.approx(plain.gets_per_s / 2)


def test_each_teacher_costs_its_own_scores_and_requests() -> None:
    one, two = laid_out().sizes[0], laid_out('teachers.math={model="math"}').sizes[0]
    assert two.store_bytes == pytest.approx(2 * one.store_bytes, rel=1e-6)
    assert one.puts_per_s < two.puts_per_s < 2 * one.puts_per_s


def test_the_limit_that_is_met_first_comes_first_and_fits_the_rate() -> None:
    found = laid_out()
    places = [limit.tokens for limit in found.limits]
    assert places == sorted(places)
    (writes,) = [limit for limit in found.limits if "writes a second" in limit.what]
    at = laid_out(sizes=(round(writes.tokens),)).sizes[0]
    assert at.puts_per_s == pytest.approx(3500, rel=1e-6)


def test_prices_fall_with_k_and_packed_is_the_cheaper_codec() -> None:
    prices = laid_out().month_usd
    assert set(prices) == set(BYTES)
    for by_k in prices.values():
        assert list(by_k.values()) == sorted(by_k.values())
    assert all(prices["packed-v1"][k] < prices["typed-v1"][k] for k in prices["typed-v1"])


@pytest.mark.slow
def test_a_measured_run_says_how_many_workers_score(finished_run: str, cli: Cli) -> None:
    said = cli.ok("plan", "-c", f"{finished_run}/run.toml", "--scale", "--days", "1")
    assert said["basis"] == "round 1" and said["days"] == 1
    assert [one["tokens"] for one in said["sizes"]] == list(SIZES)
    assert said["sizes"][-1]["workers"] > said["sizes"][0]["workers"] >= 1
    shown = cli("plan", "-c", f"{finished_run}/run.toml", "--scale").stdout
    assert "what gives out" in shown and "k = 64" in shown
    stages = [f"{need['stage']} {need['memory']}" for need in said["memory"]["needs"]]
    assert stages == ["rollout CPU", "score main CPU", "train CPU", "eval CPU", "opd run CPU"]
    assert said["memory"]["tightest"] == "opd run" and said["memory"]["warnings"] == []
    assert "met first: the memory of opd run" in shown


@pytest.mark.slow
def test_what_will_not_fit_is_warned_of_and_a_model_that_is_not_here_is_named(
    run_copy: Path, cli: Cli
) -> None:
    config = run_copy / "run.toml"
    large = ("--set", "train.micro_batch_tokens=2000000000", "--set", "train.device=cuda")
    outcome = cli("plan", "-c", config, "--scale", *large)
    assert outcome.code == 0 and "train needs a GPU, and none was found here" in outcome.stderr
    for name in ("model.safetensors", "config.json"):
        (run_copy / "main" / name).unlink()
    said = cli.ok("plan", "-c", config, "--scale")
    assert list(said["memory"]["unknown"]) == ["teachers.main"]
    assert [need["stage"] for need in said["memory"]["needs"]] == ["rollout", "train", "eval"]
