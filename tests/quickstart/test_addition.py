"""The quickstart's task: right solutions, disjoint problems, targets after mistakes."""

import random
from itertools import islice
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.quickstart import addition
from pipeline.quickstart.addition import (
    BOS,
    EOS,
    MAX_PROMPT_TOKENS,
    MAX_RESPONSE_TOKENS,
    PAD,
    VOCABULARY,
    Problem,
    distinct,
    encode,
    make_tokenizer,
    problems,
    with_mistakes,
)

OPERANDS = st.integers(10, 9999)
PROBLEMS = st.builds(Problem, OPERANDS, OPERANDS)
COLUMN = 4
"""Characters of a column: a, b, carry in, sum."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_the_example_of_the_documentation_is_what_is_written() -> None:
    problem = Problem(347, 589)
    assert f"`{problem.prompt}`" in str(addition.__doc__)
    assert f"`{problem.response}`" in str(addition.__doc__)


@given(PROBLEMS)
@example(Problem(9999, 9999))
@example(Problem(10, 9990))
def test_a_solution_adds_column_by_column_and_ends_with_the_sum(problem: Problem) -> None:
    written, mark, answer = problem.response.partition("#")
    assert mark and int(answer) == problem.a + problem.b and answer == problem.answer
    columns = [written[i : i + COLUMN] for i in range(0, len(written), COLUMN)]
    for power, column in enumerate(columns):
        a, b, carry, total = map(int, column)
        assert (a, b) == tuple(n // 10**power % 10 for n in (problem.a, problem.b))
        low = problem.a % 10**power + problem.b % 10**power
        assert carry == low // 10**power
        assert total == (problem.a + problem.b) // 10**power % 10
    assert len(columns) == max(len(str(problem.a)), len(str(problem.b)))


@given(PROBLEMS)
@example(Problem(9999, 9999))
def test_prompt_and_solution_fit_their_lengths(problem: Problem) -> None:
    assert len(problem.prompt) <= MAX_PROMPT_TOKENS
    assert len(problem.response) + 1 <= MAX_RESPONSE_TOKENS


def test_the_longest_lengths_are_reached() -> None:
    problem = Problem(9999, 9999)
    assert len(problem.prompt) == MAX_PROMPT_TOKENS
    assert len(problem.response) + 1 == MAX_RESPONSE_TOKENS


@given(PROBLEMS)
def test_the_tokenizer_gives_one_id_per_character_and_the_text_back(
    tokenizer: Any, problem: Problem
) -> None:
    text = problem.prompt + problem.response
    ids = tokenizer(text).input_ids
    assert ids == encode(text) == [VOCABULARY.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, EOS], skip_special_tokens=True) == text


def test_special_tokens_have_the_ids_that_models_are_made_with(tokenizer: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (
        PAD,
        EOS,
        BOS,
    )
    assert len(tokenizer) == len(VOCABULARY)
    assert tokenizer("x").input_ids == [tokenizer.unk_token_id]


def test_held_out_problems_are_never_trained_on() -> None:
    trained = set(islice(problems(1, held_out=False), 4000))
    kept = set(islice(problems(1, held_out=True), 1000)) | set(
        islice(problems(2, held_out=True), 9)
    )
    assert not trained & kept
    assert all(p.held_out for p in kept) and not any(p.held_out for p in trained)
    source = random.Random(0)
    drawn = [Problem(source.randrange(10, 9999), source.randrange(10, 9999)) for _ in range(5000)]
    assert 0.08 < sum(p.held_out for p in drawn) / 5000 < 0.12


def test_problems_depend_on_the_seed_and_have_operands_of_every_length() -> None:
    first, again, other = (list(islice(problems(s, held_out=False), 300)) for s in (3, 3, 4))
    assert first == again != other
    lengths = {(len(str(p.a)), len(str(p.b))) for p in first}
    assert lengths == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


@pytest.mark.parametrize("held_out", [True, False])
def test_distinct_problems_are_distinct(held_out: bool) -> None:
    found = distinct(500, 9, held_out=held_out)
    assert len(set(found)) == len(found) == 500
    assert {p.held_out for p in found} == {held_out}
    assert found[:50] == distinct(50, 9, held_out=held_out)


@given(PROBLEMS, st.integers(0, 99))
def test_without_mistakes_the_solution_is_its_own_target(problem: Problem, seed: int) -> None:
    written, targets = with_mistakes(problem, random.Random(seed), 0.0)
    assert written == targets == problem.response


def right_tokens(problem: Problem, written: str) -> str:
    """Return the right next token at each place, judged from the digits that are written."""
    width = max(len(str(problem.a)), len(str(problem.b)))
    found, carry, sums = "", 0, []
    for power in range(width):
        x, y, k, s = map(int, written[power * COLUMN : (power + 1) * COLUMN])
        found += f"{problem.a // 10**power % 10}{problem.b // 10**power % 10}{carry}"
        found += str((x + y + k) % 10)
        carry = (x + y + k) // 10
        sums.append(str(s))
    return found + "#" + ("1" if carry else "") + "".join(reversed(sums))


@given(PROBLEMS, st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0]))
def test_after_a_mistake_the_target_goes_on_from_what_is_written(
    problem: Problem, seed: int, share: float
) -> None:
    written, targets = with_mistakes(problem, random.Random(seed), share)
    assert len(written) == len(targets)
    assert targets == right_tokens(problem, written)
    assert set(written) <= set("0123456789#") and written.count("#") == 1


def test_the_share_of_mistakes_is_kept() -> None:
    source, wrong, total = random.Random(0), 0, 0
    for problem in distinct(500, 0, held_out=False):
        written, targets = with_mistakes(problem, source, 0.2)
        wrong += sum(w != t for w, t in zip(written, targets, strict=True))
        total += len(written)
    # a choice among ten digits hits the right one now and then; carries have two choices
    assert 0.13 < wrong / total < 0.19
