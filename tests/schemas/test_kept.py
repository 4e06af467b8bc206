"""What is kept of a token that a TOML says nothing of: it follows from the loss, and is pinned."""

import pytest

from benchmarks.gradients.forms import DEFAULT
from schemas.config.file import config_fingerprint
from schemas.config.run import RunConfig, signal_of, usual_signal_of
from tests.support.minimal import parse, without

SILENT = without("score.k")


def kept(config: RunConfig) -> tuple[int, int, int]:
    return config.score.k, config.rollout.sample, config.score.sample


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), (4, 26, 0)),
        (("loss.kind=jsd",), (4, 26, 0)),
        (("loss.kind=jsd", "loss.beta=0"), (0, 0, 32)),
        (("loss.kind=forward_kl",), (0, 0, 32)),
        (("loss.kind=skew_kl",), (0, 0, 32)),
        (("loss.kind=alpha",), (4, 26, 0)),
        (("loss.kind=alpha", "loss.alpha=0.7"), (0, 0, 32)),
        (("loss.kind=policy_gradient",), (4, 26, 0)),
        (("loss.temperature=0.5",), (64, 0, 0)),
        (("loss.estimator=bucket",), (64, 0, 0)),
        (("rollout.top_p=0.9",), (64, 0, 0)),
        (("rollout.engine=server",), (64, 0, 0)),
        (("score.engine=server",), (64, 0, 0)),
        (("score.engine=server", "loss.kind=forward_kl"), (64, 0, 0)),
        (("score.top_p=0.9",), (64, 0, 0)),
        (("rollout.sample=8",), (4, 8, 0)),
        (("score.k=8",), (8, 0, 0)),
    ],
)
def test_what_is_left_out_follows_from_the_loss(
    overrides: tuple[str, ...], expected: tuple[int, int, int]
) -> None:
    assert kept(parse(*overrides, text=SILENT)) == expected


def test_what_is_kept_by_default_is_the_benchmarks_default() -> None:
    assert signal_of(parse(text=SILENT)) == DEFAULT.signal


def test_a_run_is_the_same_whether_its_numbers_are_named_or_left_out() -> None:
    named = parse("score.k=4", "rollout.sample=26", "rollout.sample_most=80", text=SILENT)
    assert config_fingerprint(named) == config_fingerprint(parse(text=SILENT))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), (80, True)),
        (("rollout.sample=8",), (8, False)),
        (("rollout.sample=8", "rollout.sample_most=20"), (20, True)),
        (("rollout.sample_most=40",), (40, True)),
        (("score.k=8", "rollout.sample=8"), (8, False)),
        (("loss.kind=forward_kl",), (0, False)),
    ],
)
def test_positions_have_as_many_ids_as_they_need_where_a_toml_does_not_say_how_many(
    overrides: tuple[str, ...], expected: tuple[int, bool]
) -> None:
    signal = signal_of(parse(*overrides, text=SILENT))
    assert (signal.candidates, signal.uneven) == expected


def test_forecasts_are_of_the_ids_that_positions_have_on_average() -> None:
    assert usual_signal_of(parse(text=SILENT)).candidates == 26
