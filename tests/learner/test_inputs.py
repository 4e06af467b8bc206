"""What a round trains on: all of it there and of one origin, or told what is not."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.learner.inputs import TrainInputs, find_inputs, find_work
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.keys import plan_key
from tests.support.minimal import TEXT, minimal_run
from tests.support.paperrun import (
    digest,
    identity_of,
    put,
    put_checkpoint,
    put_rollout,
    put_scores,
    put_teacher,
    put_train,
)

TWO = TEXT + '\n[teachers.math]\nmodel = "math"\n'
TEACHERS = {"main": (1, 2), "math": (1, 3)}
"""Rows and tokens of each unit, by teacher."""


@pytest.fixture
def run(memory: Storage) -> Run:
    """Return a run whose round 1 is sampled and scored by two teachers."""
    made = minimal_run(memory, "run.rounds=3", text=TWO)
    put_train(made, 0, first_step=5, steps=4)
    put_checkpoint(made, 1)
    put_rollout(made, 1)
    for teacher, share in TEACHERS.items():
        put_teacher(made, teacher)
        put_scores(made, 1, teacher, share=share)
    return made


def test_a_round_trains_on_its_rollout_and_the_scores_of_every_teacher(run: Run) -> None:
    found = find_inputs(run, 1)
    assert find_work(run, 1) == found
    assert (found.round_index, found.rollout) == (1, run.rollout(1))
    assert found.scores == {teacher: run.score(1, teacher) for teacher in TEACHERS}
    assert found.policy == run.checkpoint(1)
    assert found.first_step == 9
    shards = [unit.shard.key for unit in found.rollout.units]
    shards += [unit.shard.key for s in found.scores.values() for unit in s.units]
    assert list(found.shard_keys()) == shards and len(shards) == 6


def test_a_round_that_is_trained_needs_no_inputs(run: Run) -> None:
    assert find_work(run, 0) == run.train(0)
    with pytest.raises(ConfigError, match="opd rollout --round 0"):
        find_inputs(run, 0)


def test_the_digest_is_of_the_rollout_and_of_who_scored_it(run: Run) -> None:
    found = find_inputs(run, 1)
    rollout = found.rollout.model_copy(update={"fingerprint": "other"})
    other = found.scores["math"].model_copy(update={"scorer": "0" * 32})
    same = found.scores["math"].model_copy(update={"reused_rows": 3})
    changed = [
        replace(found, rollout=rollout),
        replace(found, scores=found.scores | {"math": other}),
        replace(found, scores={"main": other, "math": found.scores["main"]}),
    ]
    assert len({one.fingerprint for one in (found, *changed)}) == 4
    like: TrainInputs = replace(found, scores=found.scores | {"math": same}, first_step=0)
    assert like.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("rollout", "round 1 has no finished rollout: run `opd rollout --round 1`"),
        ("score/math", "round 1 is not scored by teacher 'math': run `opd score --round 1`"),
    ],
)
def test_a_stage_that_is_missing_is_named_with_its_command(
    run: Run, stage: str, words: str
) -> None:
    run.storage.delete(run.manifest_key(1, stage))
    with pytest.raises(ConfigError, match=words):
        find_work(run, 1)


def test_the_round_before_must_be_trained(run: Run) -> None:
    run.storage.delete(run.manifest_key(0, "train"))
    with pytest.raises(ConfigError, match="round 0 is not trained yet"):
        find_inputs(run, 1)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    with pytest.raises(ConfigError, match="needs checkpoint 0001, which round 0 has not trained"):
        find_inputs(run, 1)


def test_samples_of_another_policy_are_refused(run: Run) -> None:
    put_checkpoint(run, 1, version=digest("another"))
    found, expected = digest("policy", 1), digest("another")
    with pytest.raises(IdentityError, match=f"found fingerprint {found}, expected {expected}"):
        find_inputs(run, 1)


def test_scores_of_another_rollout_are_refused(run: Run) -> None:
    put_scores(run, 1, "math", share=TEACHERS["math"], rollout_fingerprint=digest("other"))
    with pytest.raises(IdentityError, match="score/math/manifest.json was made by other work"):
        find_inputs(run, 1)


def test_scores_of_a_teacher_that_the_name_does_not_stand_for_are_refused(run: Run) -> None:
    stranger = identity_of(run, "math", model={"weights": "stranger"})
    put_scores(run, 1, "math", share=TEACHERS["math"], identity=stranger)
    with pytest.raises(IdentityError, match="another teacher.*'stranger'.*this run's 'math'"):
        find_inputs(run, 1)


def test_scores_under_the_name_of_another_scorer_are_refused(run: Run) -> None:
    manifest = put_scores(run, 1, "math", share=TEACHERS["math"])
    other = identity_of(run, "math", engine_version="2")
    run.storage.put(f"cache/{manifest.scorer}/scorer.json", other.to_bytes())
    with pytest.raises(IdentityError, match="another teacher"):
        find_inputs(run, 1)


def test_a_scorer_without_a_description_is_missing(run: Run) -> None:
    run.storage.delete(f"cache/{identity_of(run, 'main').key}/scorer.json")
    with pytest.raises(DataError, match="scorer.json is missing"):
        find_inputs(run, 1)


@pytest.mark.parametrize(
    ("overrides", "refused"), [([], True), (['teachers.math.scores="mixed"'], False)]
)
def test_another_signal_is_refused_unless_the_scores_were_named(
    run: Run, overrides: list[str], refused: bool
) -> None:
    signal: dict[str, Any] = {"k": 3}
    put_scores(
        run, 1, "math", share=TEACHERS["math"], identity=identity_of(run, "math", signal=signal)
    )
    named = minimal_run(run.storage, "run.rounds=3", *overrides, text=TWO)
    if refused:
        with pytest.raises(IdentityError, match="signal {'k': 3}, the configuration asks for"):
            find_inputs(named, 1)
    else:
        assert (
            find_inputs(named, 1).scores["math"].scorer
            == identity_of(run, "math", signal=signal).key
        )


def test_a_unit_of_which_a_token_is_not_scored_is_refused(run: Run) -> None:
    put_scores(run, 1, "math", share=(1, 2))
    with pytest.raises(DataError, match="2 rows and 4 tokens of unit u00000 are scored, 2 and 5"):
        find_inputs(run, 1)


def test_scores_of_fewer_units_than_were_sampled_are_refused(run: Run) -> None:
    manifest = run.score(1, "math")
    assert manifest is not None
    cut = {"units": manifest.units[:-1], "rows": 1, "tokens": 3}
    put(run, run.manifest_key(1, "score/math"), manifest.model_copy(update=cut))
    with pytest.raises(DataError, match="teacher math scored 1 of 2 units"):
        find_inputs(run, 1)


@pytest.mark.parametrize("planned", [True, False])
def test_a_rollout_that_is_not_what_was_planned_is_refused(run: Run, planned: bool) -> None:
    manifest = run.rollout(1)
    assert manifest is not None
    cut = {"units": manifest.units[:-1], "rows": 2, "tokens": 5}
    put(run, run.manifest_key(1, "rollout"), manifest.model_copy(update=cut))
    if not planned:
        run.storage.delete(plan_key(run.stage_folder(1, "rollout")))
    words = "number of units is 1, planned is 2" if planned else "the plan is gone"
    with pytest.raises(DataError, match=words):
        find_inputs(run, 1)
