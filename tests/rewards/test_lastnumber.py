"""The last number of a text: what counts as a number, and when two of them are equal."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.lastnumber import last_number

NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.integers(0, 10**12).map("{:,}".format),
    st.decimals(-(10**6), 10**6, places=4).map(str),
    st.fractions().map(str),
)


def exact(text: str) -> Fraction:
    plain = text.replace(",", "")
    return Fraction(plain) if "/" in plain else Fraction(Decimal(plain))


@given(
    NUMBERS, NUMBERS, st.sampled_from(["{}", "the answer is {}", "1 and 2.5 make {}.", "#{} ok"])
)
def test_two_numbers_are_equal_where_their_exact_values_are(
    found: str, expected: str, text: str
) -> None:
    same = last_number(text.format(found)) == last_number(expected)
    assert same == (exact(found) == exact(expected))
    assert last_number(text.format(found)) == last_number(f"because of 7: {found}")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1,234,567", "1234567"),
        ("4.0", "4"),
        (".5", "0.50"),
        ("+3", "3"),
        ("10-7", "7"),
        ("about 1.5e3", "1500"),
        ("Answer: 3.", "3"),
        ("5.", "5"),
        ("$1,234.50", "1234.5"),
        ("50%", "50"),
        ("1e3", "1000"),
        ("1E+3", "1000"),
        ("2e\u22122", "0.02"),
        ("\u22125", "-5"),
        ("-0", "0"),
        ("0.0e999", "0"),
        ("007", "7"),
        ("3/4", "0.75"),
        ("-6/8", "-3/4"),
        ("1/3", "2/6"),
        ("it is 10/2 = 5", "5"),
        ("1/2/3", "3"),
        ("5/0", "0"),
        ("1/2.5", "2.5"),
        ("1,23", "23"),
        ("12,345,6", "6"),
        ("1234,567", "567"),
        ("1,2345", "2345"),
        ("1_234", "1234"),
        ("1\u00a0234\u00a0567", "1234567"),
        ("12\u202f345", "12345"),
        ("1 234", "234"),
        ("1,234_567", "567"),
        ("1.2.3", "3"),
        ("3:45", "45"),
        ("4, then 5", "5"),
        ("9007199254740993", "9007199254740993.0"),
        ("1" + "0" * 5000, "1e5000"),
        ("1e999999999", "10e999999998"),
        ("1e" + "9" * 30, "1e" + "9" * 30),
        ("6 \u00bd", "6"),
        ("10\u00b2", "10"),
        ("4 and \u0663", "4"),
        ("4 and \uff17", "4"),
        ("5e", "5"),
        ("0x1f", "1"),
    ],
)
def test_a_number_in_many_dresses(text: str, same: str) -> None:
    assert last_number(text) == last_number(same) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9007199254740993", "9007199254740992"),
        ("1e999999999", "1e999999998"),
        ("1e" + "9" * 30, "1e" + "9" * 31),
        ("1e" + "9" * 30, "1e-" + "9" * 30),
        ("0.1", "0.10000000000000001"),
        ("1e400", "2e400"),
        ("-3", "3"),
        ("1/3", "0.3333333333333333"),
        ("3/4", "4"),
        ("50%", "0.5"),
    ],
)
def test_numbers_that_differ_a_little_are_not_equal(one: str, other: str) -> None:
    assert last_number(one) != last_number(other)


@pytest.mark.parametrize(
    "text", ["", "none", "\u0663\u0664", "\u00bd", "\u00b2", "\uff11", "NaN", "inf", "-", ".", ","]
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.timeout(30)  # the square of it would take an hour
@pytest.mark.parametrize(
    "piece",
    ["1", "1,111", "1,1", "1/", "1/1", "-", "1.", "1e", "1e5", ",111", "1\u202f111", "\u2212."],
)
def test_the_time_grows_with_the_text_alone(piece: str) -> None:
    assert last_number(piece * 200_000 + " 7") == last_number("7")
