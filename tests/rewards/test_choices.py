"""The option that a response chooses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.choices import chosen, same_choice


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**C**.", "C"),
        ("The answer is (D).", "D"),
        ("The answer is **D**", "D"),
        ("Answer: a", "A"),
        ("I think option C is right, so the answer is B.", "B"),
        ("First the answer is A. No: the answer is C.", "C"),
        ("A long story. A cat sat.\n\\boxed{E}", "E"),
        ("\\boxed{\\text{C}}", "C"),
        ("B) because it is warm", "B"),
        ("- \n C. the third", "C"),
        ("It must be (A) or (B)", "B"),
        ("3", "3"),
        ("A cat sat on the mat", None),
        ("The answer is Berlin", None),
        ("", None),
    ],
)
def test_the_option_of_a_response(text: str, option: str | None) -> None:
    assert chosen(text) == option


def test_it_is_compared_with_the_reference_whatever_its_case() -> None:
    assert same_choice("The answer is (b)", "B") == 1.0
    assert same_choice("The answer is (b)", "(C)") == 0.0
    assert same_choice("no idea", "C") == 0.0
    with pytest.raises(ValueError, match="is no option"):
        same_choice("B", "Berlin")


@given(st.text(alphabet="aA (){}*\\boxed:answer\n1", max_size=300))
def test_any_text_has_an_option_or_none(text: str) -> None:
    found = chosen(text)
    assert found is None or (len(found) == 1 and found == found.upper())


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    for piece in ("answer ", "(", "\\boxed{", "*", " A", "answer:\n  "):
        assert chosen(piece * 50_000) in (None, "A")
