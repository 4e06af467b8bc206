"""Figures of a round that alarms are judged by, and their errors, where settings and rows say more.

Means of many samples of few prompts, or of rows of unlike weights, are less sure than they look.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.runs.alarms.figures import SPREAD, Value, figures_of
from pipeline.runs.alarms.seen import Seen
from pipeline.store.storage import Storage
from schemas.records.scores import TokenLooks
from tests.support.minimal import minimal_run
from tests.support.paperrun import put_rollout, put_scores, put_train

MASSES = {"student_mass": 0.1, "teacher_mass": 0.1}
MAPS = ("domains", "openings")
TOLD = {**MASSES, "tail_clamped": 1.0, "floored": 1.0}


def looks(**known: Any) -> TokenLooks:
    """Return looks of which some is known."""
    nothing = {name: 0 for name in TokenLooks.model_fields if name not in MAPS}
    return TokenLooks(**(nothing | known))


def seen(memory: Storage, *overrides: str, steps: Any = None, **known: Any) -> Seen:
    """Return what is stored of a round that was trained, with looks of which some is known."""
    run = minimal_run(memory, *overrides)
    train = put_train(run, 0).model_copy(update={"summary": TOLD, "rollout_kl": 0.0})
    scores = put_scores(run, 0, "main").model_copy(update={"looks": looks(**known)})
    rollout = put_rollout(run, 0)
    return Seen(0, run.config, rollout=rollout, scores=(scores,), train=train, steps=steps)


@pytest.mark.parametrize(
    ("override", "told"),
    [("score.k=8", True), ("rollout.sample=4", False), ("score.sample=4", False)],
)
def test_little_mass_on_the_kept_ids_is_no_fault_beside_a_sample(
    memory: Storage, override: str, told: bool
) -> None:
    found = figures_of(seen(memory, override))
    assert MASSES.keys() <= found.keys() if told else not MASSES.keys() & found.keys()


def test_what_a_teacher_sampled_and_none_has_scored_says_nothing_of_scores(
    memory: Storage,
) -> None:
    assert TOLD.keys() <= figures_of(seen(memory)).keys()
    assert not TOLD.keys() & figures_of(seen(memory, "loss.kind=sft")).keys()


def length(memory: Storage, rows_of_each: list[list[int]]) -> Value:
    """Return the mean length of responses, given by prompt."""
    of_prompts = [sum(rows) for rows in rows_of_each]
    known = {
        "rows": sum(map(len, rows_of_each)),
        "tokens": sum(of_prompts),
        "prompts": len(of_prompts),
        "prompt_squares": float(np.square(of_prompts).sum()),
    }
    return figures_of(seen(memory, **known))["response_tokens"]


def test_the_error_of_a_length_is_that_of_the_prompts(memory: Storage) -> None:
    short, long = [2, 2, 2, 2], [6, 6, 6, 6]
    error = length(memory, [short, long]).error
    assert error == pytest.approx(np.std([2.0, 6.0], ddof=1) / 2**0.5)
    apart = length(memory, [[n] for n in short + long]).error
    assert apart == pytest.approx(np.std(short + long, ddof=1) / 8**0.5)


def test_the_length_of_rounds_of_an_older_opd_is_as_unsure_as_it_may_be(memory: Storage) -> None:
    assert figures_of(seen(memory))["response_tokens"] == Value(2.5, 2.5 / 4**0.5)


def test_prompts_with_several_samples_count_once_where_they_look_cut(memory: Storage) -> None:
    lengths = {"shortest_prompt": 10, "longest_prompt": 40, "longest_prompts": 32}
    once = figures_of(seen(memory, rows=64, tokens=64, prompts=64, **lengths))
    often = figures_of(seen(memory, rows=64, tokens=64, prompts=2, **lengths))
    assert once["prompts_at_longest"].mean == often["prompts_at_longest"].mean == 0.5
    assert once["prompts_at_longest"].error < 0.07 < 0.3 < often["prompts_at_longest"].error


@pytest.mark.parametrize(
    ("override", "learned", "told"),
    [("rollout.top_k=0", 0.7, 0.2), ("rollout.temperature=0.5", 0.7, 0.7)]
    + [("rollout.temperature=0.5", None, None)],
)
def test_the_distance_of_a_tempered_rollout_is_what_its_learner_says(
    memory: Storage, override: str, learned: float | None, told: float | None
) -> None:
    one = seen(memory, override)
    assert one.train is not None
    scores = tuple(s.model_copy(update={"reverse_kl": 0.2}) for s in one.scores)
    train = one.train.model_copy(update={"reverse_kl": learned})
    found = figures_of(replace(one, scores=scores, train=train)).get("reverse_kl")
    assert (None if found is None else found.mean) == told


# --- samples that are not as they were asked for ---


def steps_of(gaps: list[float], moved: list[float], tokens: float = 100.0) -> Any:
    """Return steps at which log q of what was sampled is that far from what the entropy says."""
    count = len(gaps)
    return {
        "step": np.arange(float(count)),
        "student_token_logprob": np.array(gaps) - 2.0,
        "student_entropy": np.full(count, 2.0),
        "tokens": np.full(count, tokens),
        "rollout_kl": np.array(moved),
    }


def test_steps_count_for_as_long_as_the_student_is_what_sampled(memory: Storage) -> None:
    one = figures_of(seen(memory, steps=steps_of([0.5], [0.0])))["surprise"]
    assert one == Value(0.5, SPREAD / 10.0, 0)
    still = figures_of(seen(memory, steps=steps_of([0.5] * 4, [0.0] * 4)))["surprise"]
    assert still == Value(0.5, SPREAD / 20.0, 0)
    gone = figures_of(seen(memory, steps=steps_of([0.5, 9.0], [0.0, 5.0])))["surprise"]
    assert gone == one
    moved = figures_of(seen(memory, steps=steps_of([0.5] * 4, [0.0002] * 4)))["surprise"]
    assert moved.mean == pytest.approx(0.5 - (2 * 0.0002) ** 0.5)


def test_rows_of_unlike_weights_tell_less(memory: Storage) -> None:
    steps = steps_of([0.5], [0.0])
    alike = figures_of(seen(memory, steps=steps, tokens=4, weights=8.0, weight_squares=16.0))
    unlike = figures_of(seen(memory, steps=steps, tokens=4, weights=10.0, weight_squares=100.0))
    assert alike["surprise"].error == pytest.approx(SPREAD / 10.0)
    assert unlike["surprise"].error == pytest.approx(SPREAD / 5.0)
    assert unlike["floored"].error == pytest.approx(2.0 * alike["floored"].error)


@pytest.mark.parametrize("weights", ["loss.weights.end=5.0", "loss.weights.prefix=0.5"])
def test_weights_that_may_heed_what_was_drawn_say_nothing_of_how(
    memory: Storage, weights: str
) -> None:
    steps = steps_of([0.5], [0.0])
    assert "surprise" not in figures_of(seen(memory, weights, steps=steps))


# --- how responses begin ---


def opening(memory: Storage, openings: dict[str, int], gap: float = 6.0) -> float:
    """Return how much the first tokens stand out, of 50 responses of 10 tokens each."""
    known = {"rows": 50, "tokens": 500, "prompts": 50, "first_tokens": 200, "opened": 50}
    later = {"student": -150.0, "teacher": -300.0, "gap_squares": 500.0}  # half a nat a token
    first = {"opened_gap": 50 * gap, "opened_squares": 50 * gap**2, "openings": openings}
    found = figures_of(seen(memory, **known, **later, **first))
    assert found["opening_gap"].error < 0.1
    return found["opening_gap"].mean


def test_a_first_token_that_the_teacher_has_whatever_is_asked_stands_out(memory: Storage) -> None:
    assert opening(memory, {"7": 48, "9": 2}) == pytest.approx(6.0 - 0.5)
    assert opening(memory, {"7": 48, "9": 2}, gap=0.5) == pytest.approx(0.0)


def test_a_first_token_that_is_an_answer_does_not_stand_out(memory: Storage) -> None:
    assert opening(memory, {"7": 30, "9": 20}) == 0.0
    assert opening(memory, {}) == 0.0


# --- steps ---


@pytest.mark.parametrize(
    ("norms", "told"),
    [
        ([1.0, 1.1, 0.9, 40.0, 1.0], 40.0),
        ([0.4, 0.1, 3.7, 0.8, 0.3, 0.1, 0.3, 0.2, 0.6, 0.09], 1.0),
        ([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1.0),
        ([float("nan"), 1.0, 1.0, 1.0, 1.0, 30.0], 30.0),
        ([0.01, 0.011, 0.009, 0.4, 0.01], 1.0),
    ],
    ids=["a spike", "norms that differ anyway", "some of 0", "one that is none", "below the clip"],
)
def test_a_gradient_norm_stands_out_of_norms_that_are_alike(
    memory: Storage, norms: list[float], told: float
) -> None:
    steps = {"step": np.arange(float(len(norms))), "grad_norm": np.array(norms)}
    assert figures_of(seen(memory, steps=steps))["gradient_spike"].mean == told


def test_one_step_among_many_does_not_say_that_the_student_left_its_samples(
    memory: Storage,
) -> None:
    moved = [0.0, 0.1, 0.3, 0.4, 0.4, 5.0, 0.4, 0.4]
    found = figures_of(seen(memory, steps=steps_of([0.0] * 8, moved)))["moved"]
    assert found.mean == 0.4 and found.error > 0.5
