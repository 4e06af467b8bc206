"""Rewards: the three that are built in, and functions of the user's own."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.graders import Reward, find_reward
from schemas.config.evaluation import EvalSection
from schemas.errors import ConfigError

HERE = Path()
NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(0, 10**9).map("{:,}".format),
    st.floats(-1e6, 1e6).map("{:.3f}".format),
)


def reward(name: str, pattern: str | None = None, folder: Path = HERE) -> Reward:
    return find_reward(EvalSection(reward=name, pattern=pattern), folder)


@given(st.text(), st.text())
def test_exact_match_compares_without_the_outer_spaces(response: str, reference: str) -> None:
    grade = reward("exact_match")
    assert grade(response, reference, {}) == float(response.strip() == reference.strip())
    assert grade(f" \n{reference}\t", reference, {}) == 1.0


@given(
    NUMBERS, NUMBERS, st.sampled_from(["{}", "the answer is {}", "1 and 2.5 make {}.", "#{} ok"])
)
def test_the_last_number_is_compared_by_its_value(found: str, expected: str, text: str) -> None:
    value, wanted = (float(number.replace(",", "")) for number in (found, expected))
    grade = reward("last_number")
    assert grade(text.format(found), expected, {}) == float(value == wanted)
    assert grade(text.format(found), f"because of 7: {found}", {}) == 1.0


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("no number at all", "4", 0.0),
        ("1,234,567", "1234567", 1.0),
        ("4.0", "4", 1.0),
        (".5", "0.50", 1.0),
        ("+3", "3", 1.0),
        ("minus -3", "3", 0.0),
        ("4, then 5", "4", 0.0),
        ("10-7", "7", 1.0),
        ("about 1.5e3", "1500", 1.0),
    ],
)
def test_the_last_number_in_many_dresses(response: str, reference: str, expected: float) -> None:
    assert reward("last_number")(response, reference, {}) == expected


def test_a_reference_without_a_number_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="'four' holds no number"):
        reward("last_number")("4", "four", {})


@pytest.mark.parametrize(
    ("pattern", "response", "expected"),
    [
        (r"#(\d+)$", "12#34", 1.0),
        (r"#(\d+)$", "12#35", 0.0),
        (r"#(\d+)$", "12#34 ", 0.0),
        (r"\d+", "34 or 35", 1.0),
        (r"a(\d+)|b(\d+)", "b34", 0.0),
        (r"#(\d+)$", "nothing", 0.0),
    ],
)
def test_a_regex_gives_its_first_group_or_the_whole_match(
    pattern: str, response: str, expected: float
) -> None:
    assert reward("regex", pattern)(response, "34", {}) == expected


def test_a_bad_pattern_is_named_before_any_grading() -> None:
    with pytest.raises(ConfigError, match=r"eval.pattern = '\(' is no regular expression"):
        reward("regex", "(")


@pytest.mark.parametrize(
    ("name", "pattern"), [("exact_match", None), ("regex", "."), ("last_number", None)]
)
def test_a_missing_reference_is_named(name: str, pattern: str | None) -> None:
    with pytest.raises(ConfigError, match="no 'reference'"):
        reward(name, pattern)("1", None, {})


@pytest.fixture
def module(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Return a writer of a module with a name of its own; gives the name."""

    def write(text: str) -> str:
        name = f"reward_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(text)
        request.addfinalizer(lambda: sys.modules.pop(name, None))
        return name

    return write


def test_a_users_function_gets_response_reference_and_free_columns(
    module: Any, tmp_path: Path
) -> None:
    name = module("def grade(*given):\n    return given == ('text', None, {'level': 3})\n")
    path = list(sys.path)
    grade = reward(f"{name}:grade", folder=tmp_path)
    assert grade("text", None, {"level": 3}) == 1.0
    assert grade("text", "x", {"level": 3}) == 0.0
    assert sys.path == path


def test_a_users_function_may_give_any_number(module: Any, tmp_path: Path) -> None:
    name = module("def grade(response, reference, columns):\n    return len(response)\n")
    found = reward(f"{name}:grade", folder=tmp_path)("four", None, {})
    assert found == 4.0 and type(found) is float


@pytest.mark.parametrize("value", ["None", "'1'", "[1]"])
def test_what_is_no_number_is_refused(module: Any, tmp_path: Path, value: str) -> None:
    name = module(f"def grade(*given):\n    return {value}\n")
    with pytest.raises(ConfigError, match="expected a number"):
        reward(f"{name}:grade", folder=tmp_path)("", None, {})


def test_a_users_function_that_is_not_there_is_named(module: Any, tmp_path: Path) -> None:
    name, path = module("number = 4\n"), list(sys.path)
    for wanted, message in (
        ("no_such_module:grade", f"no_such_module:grade.*looked for in {tmp_path}"),
        (f"{name}:grade", "cannot be imported"),
        (f"{name}:number", "is not a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            reward(wanted, folder=tmp_path)
        assert sys.path == path
