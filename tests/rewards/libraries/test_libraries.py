"""Graders of libraries: mathematics, JSON by a schema; what a model writes never ends a grading."""

import json
from collections.abc import Sequence

import pytest

from pipeline.rewards.graders import Response
from pipeline.rewards.libraries.judging import open_evaluator
from pipeline.rewards.location import find_grader
from pipeline.rewards.pool import open_judge
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import EvalSection, RewardSection
from schemas.errors import ConfigError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def graded(name: str, *rows: tuple[str, str | None], timeout_s: float = 60.0) -> list[float]:
    """Return the grades of responses with their references, as an evaluation has them."""
    given = [Response(f"p{i}", text, reference, None) for i, (text, reference) in enumerate(rows)]
    grader = find_grader(EvalSection(reward=name), ConfigPlace("/nowhere"))
    with open_evaluator(grader, timeout_s=timeout_s) as grade:
        return grade(given)


def of_reference(reference: str, responses: Sequence[str]) -> list[tuple[str, str | None]]:
    return [(response, reference) for response in responses]


def test_mathematics_is_compared_by_value() -> None:
    right = [
        ("The answer is $\\frac{1}{2}$.", "0.5"),
        ("so we get \\boxed{\\dfrac{2}{4}}", "\\frac{1}{2}"),
        ("It is 1,234.", "1234"),
        ("Therefore $x = 3$", "3"),
        ("$\\{1, 2\\}$", "\\{2,1\\}"),
        ("\\boxed{2\\sqrt{2}}", "$\\sqrt{8}$"),
        ("The final answer is $144$. I hope it is correct.", "144"),
    ]
    wrong = [
        ("The answer is $\\frac{1}{3}$.", "0.5"),
        ("I do not know.", "4"),
        ("", "4"),
        ("\\boxed{__import__('os').system('true')}", "4"),
        ("$" + "{" * 3000, "4"),
        ("9^9^9^9^9^9", "4"),
    ]
    assert graded("math", *right, *wrong) == [1.0] * len(right) + [0.0] * len(wrong)


def test_a_reference_that_is_no_mathematics_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot grade prompt 'p1'.*is no number or LaTeX"):
        graded("math", ("4", "4"), ("4", "the capital of France"))
    with pytest.raises(ConfigError, match="has no 'reference'"):
        graded("math", ("4", None))


def test_json_is_held_against_its_schema() -> None:
    reference = json.dumps(SCHEMA)
    right = [
        '{"name": "a"}',
        ' {"name": "a", "age": 3}\n',
        'Here:\n```json\n{"name": "b"}\n```\nDone',
    ]
    wrong = [
        *('{"name": 1}', '{"age": 3}', '{"name": "a", "x": 1}', '{"name": "a", "age": -1}'),
        *("", "name: a", '```json\n{"name": "a"}\n```\n```\n[1]\n```', "[" * 100_000),
    ]
    rows = of_reference(reference, [*right, *wrong])
    assert graded("json_schema", *rows) == [1.0] * len(right) + [0.0] * len(wrong)


@pytest.mark.parametrize("reference", ["{", '{"type": 3}', "[1]", "3"])
def test_a_reference_that_is_no_schema_is_told(reference: str) -> None:
    with pytest.raises(ConfigError, match="the reference is no JSON schema"):
        graded("json_schema", ("{}", reference))


def test_a_schema_fetches_nothing() -> None:
    schema = json.dumps({"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(ConfigError, match=r"cannot grade prompt.*127\.0\.0\.1:9"):
        graded("json_schema", ("{}", schema))


def test_a_response_that_takes_for_ever_is_wrong_and_its_neighbours_are_graded() -> None:
    schema = json.dumps({"type": "string", "pattern": "^(a+)+$"})
    rows = [('"aa"', schema), (json.dumps("a" * 40 + "b"), schema), ('"aaa"', schema)]
    assert graded("json_schema", *rows, timeout_s=2.0) == [1.0, 0.0, 1.0]


def test_they_give_rewards_too_and_a_fault_costs_its_row() -> None:
    section = RewardSection(grader="json_schema", timeout_s=60.0)
    grader = find_grader(section, ConfigPlace("/nowhere"))
    rows = [Response("p", "3", '{"type": "integer"}', None), Response("p", "3", "{", None)]
    with open_judge(grader, section) as judge:
        good, bad = judge([*rows])
    assert good.reward == 1.0 and bad.reward is None and bad.fault == "raised"


def test_the_version_of_the_library_is_part_of_what_grades_are() -> None:
    grader = find_grader(EvalSection(reward="math"), ConfigPlace("/nowhere"))
    assert grader.identity[0].startswith("math-verify 0.")
    assert grader.compares and not grader.is_own


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipeline.rewards.location.LIBRARIES", {"math": ("no-such-package", "mathematics.py")}
    )
    with pytest.raises(ConfigError, match=r"needs the package no-such-package: pip install 'opd\["):
        find_grader(EvalSection(reward="math"), ConfigPlace("/nowhere"))
