"""A fault of one teacher among several is named, however many others are well."""

from typing import Any

import pytest

from pipeline.runs.alarms.judging import run_alarms
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from schemas.records.scores import TokenLooks
from tests.support.minimal import minimal_run
from tests.support.paperrun import put_scores

WELL: dict[str, Any] = {
    **{"rows": 200, "tokens": 2000, "student": -1000.0, "teacher": -2000.0, "gap_squares": 2000.0},
    **{"first_tokens": 800, "first_student": -400.0, "first_teacher": -800.0, "ended": 200},
    **{"ended_student": -200.0, "ended_teacher": -300.0, "looked": 2000, "ranked": 2000},
    **{"found": 2000, "compared": 0, "overlap": 0.0, "shortest_prompt": 5, "longest_prompt": 9},
    **{"longest_prompts": 20, "prompts": 200, "prompt_squares": 20000.0, "weights": 2000.0},
    **{"weight_squares": 2000.0, "opened": 200, "opened_gap": 100.0, "opened_squares": 100.0},
    "domains": {"maths": 1000.0, "chat": 1000.0},
}
TEACHERS = [f"t{number}" for number in range(12)]


def scored(memory: Storage, **ill: Any) -> Run:
    """Return a run whose round was scored by many teachers, of which the first is ill."""
    run = minimal_run(memory, *(f'teachers.{name}.model="models/{name}"' for name in TEACHERS))
    for place, name in enumerate(TEACHERS):
        looks = WELL | {"openings": {str(place): 200}} | ({} if place else ill)
        put_scores(run, 0, name, looks=TokenLooks(**looks))
    return run


@pytest.mark.parametrize(
    ("ill", "name"),
    [
        ({"found": 800}, "scores_shuffled"),
        ({"opened_gap": 1600.0, "opened_squares": 13000.0}, "template_strange"),
        ({"ended_teacher": -2000.0}, "end_token_lost"),
        ({"gap_squares": 0.01}, "teacher_is_student"),
    ],
)
def test_a_fault_of_one_teacher_is_named_with_its_name(
    memory: Storage, ill: dict[str, Any], name: str
) -> None:
    (found,) = run_alarms(scored(memory, **ill), [0])
    assert found.name == name and found.words.startswith("Teacher t0: ")


def test_what_is_of_the_prompts_is_not_asked_of_each_teacher(memory: Storage) -> None:
    assert run_alarms(scored(memory, domains={"maths": 1.0}), [0]) == []
    lopsided = {"maths": 1000.0, "chat": 1.0}
    assert run_alarms(scored(memory, domains=lopsided), [0]) == []
