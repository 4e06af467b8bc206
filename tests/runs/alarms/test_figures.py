"""Figures of a round that alarms are judged by, where the round's settings say what they mean."""

import pytest

from pipeline.runs.alarms.figures import figures_of
from pipeline.runs.alarms.seen import Seen
from pipeline.store.storage import Storage
from tests.support.minimal import minimal_run
from tests.support.paperrun import put_train

MASSES = {"student_mass": 0.1, "teacher_mass": 0.1}


@pytest.mark.parametrize(
    ("override", "told"),
    [("score.k=8", True), ("rollout.sample=4", False), ("score.sample=4", False)],
)
def test_little_mass_on_the_kept_ids_is_no_fault_beside_a_sample(
    memory: Storage, override: str, told: bool
) -> None:
    run = minimal_run(memory, override)
    train = put_train(run, 0).model_copy(update={"summary": MASSES})
    found = figures_of(Seen(0, run.config, train=train))
    assert MASSES.keys() <= found.keys() if told else not MASSES.keys() & found.keys()
