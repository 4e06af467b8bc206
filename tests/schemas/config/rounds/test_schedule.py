"""Schedules as functions of the round, and what they may not say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config.file import config_fingerprint, identity_of
from schemas.config.rounds.schedule import ScheduleSection, at_step, on_line
from tests.support.minimal import message, parse

ROUNDS = st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True).map(sorted)
VALUES = st.floats(0.0, 1.0)


@given(ROUNDS, st.data(), st.integers(0, 60))
def test_a_line_goes_through_its_points_and_stays_between_them(
    rounds: list[int], data: st.DataObject, at: int
) -> None:
    points = tuple((r, data.draw(VALUES)) for r in rounds)
    for number, value in points:
        assert on_line(points, number) == value
    around = [v for r, v in points if r <= at][-1:] + [v for r, v in points if r >= at][:1]
    assert min(around) - 1e-12 <= on_line(points, at) <= max(around) + 1e-12
    assert on_line(points, 99) == points[-1][1]


@given(ROUNDS, st.data(), st.integers(0, 60))
def test_a_step_counts_from_its_round_on(rounds: list[int], data: st.DataObject, at: int) -> None:
    points = tuple((r, data.draw(VALUES)) for r in rounds)
    expected = [v for r, v in points if r <= at][-1:] or [points[0][1]]
    assert [at_step(points, at)] == expected


def test_two_points_of_a_round_are_a_jump() -> None:
    points = ((0, 0.1), (5, 0.1), (5, 0.9))
    assert [on_line(points, r) for r in (0, 4, 5, 6)] == [0.1, 0.1, 0.9, 0.9]
    assert on_line(((1, 0.1), (10, 0.9)), 4) == pytest.approx(0.1 + 0.8 * 3 / 9)


def test_a_key_with_a_dot_is_one_of_the_table() -> None:
    plain = ScheduleSection.model_validate({"loss": {"beta": [[1, 0.1], [10, 0.9]]}})
    quoted = ScheduleSection.model_validate({"loss.beta": [[1, 0.1], [10, 0.9]]})
    assert plain == quoted and quoted.loss_at(1) == {"beta": 0.1}


def test_a_schedule_is_of_a_runs_identity_where_there_is_one() -> None:
    assert not [key for key in identity_of(parse()) if key.startswith("schedule")]
    config = parse("loss.kind=jsd", "schedule.loss.beta=[[0, 0.2], [4, 0.6]]")
    assert identity_of(config)["schedule.loss.beta"] == [[0, 0.2], [4, 0.6]]
    assert "schedule.loss.skew" not in identity_of(config)
    assert config_fingerprint(config) != config_fingerprint(parse("loss.kind=jsd"))
    assert config.schedule is not None
    assert config.objective_with(config.schedule.loss_at(2)).beta == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule.loss.beta=[[0, 0.1], [4, 1.5]]"], "[schedule.loss] at round 3: loss.beta"),
        (["schedule.loss.beta=[[3, 0.1], [2, 0.5]]"], "write them in rising order"),
        (["schedule.loss.beta=[[3, 0.1], [3, 0.5], [3, 0.2]]"], "three points are of one round"),
        (["schedule.loss.beta=[]"], "schedule.loss.beta"),
        (["schedule.loss.beta=[[0, 0.1, 3]]"], "schedule.loss.beta.0"),
        (["schedule.loss.beta=0.5"], "schedule.loss.beta"),
        (["schedule.loss.bets=[[0, 0.5]]"], "schedule.loss.bets: unknown key; did you mean 'beta'"),
        (["schedule.loss.rl_weight=[[0, 0.0], [5, 1.0]]"], "at round 4: loss.rl_weight needs"),
        (["schedule.loss.distill_weight=[[2, 0.0]]"], "are both 0: there is nothing to learn"),
        (["schedule.loss.temperature=[[0, 1.0], [3, 2.0]]"], "add it to score.temperatures"),
        (["schedule.loss.temperature=[[3, 1.0], [3, 2.0]]"], "two steps are of round 3"),
        (['schedule.teacher=[[0, "main"], [4, "big"]]'], "names 'big', which is not one of"),
    ],
)
def test_what_no_round_could_have_is_refused_before_the_first(
    overrides: list[str], words: str
) -> None:
    assert words in message("loss.kind=jsd", *overrides)
