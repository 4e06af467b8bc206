"""The self-test of an engine: exact engines pass, and each wrong setting shows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.engine import Sample, Sampling
from pipeline.runs.figures import Noise
from pipeline.scores.scores import Scores
from pipeline.teachers.selftest import (
    ROWS,
    TOKENS,
    SelfTest,
    few_rows,
    scoring_noise,
    tolerance_of,
)
from schemas.columns import Ids
from schemas.config.score import ScoreSection
from schemas.errors import DataError
from schemas.ragged import offsets_within, token_index
from schemas.scoresignal import Signal

K, V = 3, 20
Batch = Sequence[Ids]
Change = Callable[[Scores, Batch], Scores]
PROMPTS = [np.array(ids, np.int32) for ids in ([1, 2], [3], [1, 2, 4], [5, 5])]
RESPONSES = [np.array(ids, np.int32) for ids in ([7, 8, 9], [7], [8, 8], [9, 1, 2, 3])]


def exact(prompt: Ids, response: Ids) -> Scores:
    """Return scores that are a function of the tokens before each one alone."""
    rows = []
    for end, token in enumerate(response.tolist()):
        seed = [1, *prompt.tolist(), 0, *response[:end].tolist()]
        logits = np.random.default_rng(seed).normal(0, 2, V)
        logprobs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        order = np.argsort(-logprobs)
        rank = int(np.flatnonzero(order == token)[0]) + 1
        tail = np.log(np.exp(logprobs[order[K:]]).sum())
        rows.append((order[:K], logprobs[order[:K]], tail, logprobs[token], rank))
    ids, top, tail, own, rank_ = zip(*rows, strict=True)
    return Scores(
        topk_ids=np.array(ids, np.int32),
        topk_logprobs=np.array(top, np.float32),
        tail_logprobs=np.array(tail, np.float32),
        token_logprob=np.array(own, np.float32),
        token_rank=np.array(rank_, np.int32),
    )


class Known:
    """An engine whose numbers are known, and are changed as a wrong setting would."""

    name, version, vocab_size, context_length = "known", "1", V, 64

    def __init__(self, change: Change = lambda scores, batch: scores) -> None:
        """Name what becomes of the scores of a batch."""
        self.change, self.asked = change, list[int]()

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Refuse: a self-test samples nothing."""
        raise AssertionError("a self-test sampled")

    def score(
        self, prompts: Sequence[Ids], responses: Sequence[Ids], *, signal: Signal, **kwargs: Any
    ) -> Scores:
        """Return the changed scores."""
        assert signal == Signal(K) and kwargs == {"vocab_size": V}
        self.asked.append(len(prompts))
        parts = [exact(p, r) for p, r in zip(prompts, responses, strict=True)]
        return self.change(Scores.joined(parts), responses)

    def shrink(self) -> bool:
        """Return that there is no less to try."""
        return False

    def close(self) -> None:
        """Hold nothing."""


def noise_of(change: Change = lambda scores, batch: scores) -> Noise:
    return scoring_noise(Known(change), PROMPTS, RESPONSES, signal=Signal(K), vocab_size=V)


def test_an_engine_whose_rows_do_not_touch_each_other_has_no_noise() -> None:
    noise = noise_of()
    assert noise == Noise(sum(map(len, RESPONSES)), 0.0, 0.0)
    noise.check(0.0, where="x")


def from_one_on(scores: Scores, batch: Batch) -> Scores:
    """Lower what stands behind the first row, as a cache that is read would."""
    late = np.arange(len(scores.tail_logprobs)) >= len(batch[0])
    return replace(scores, token_logprob=scores.token_logprob - late.astype(np.float32))


def off_by_one(scores: Scores, batch: Batch) -> Scores:
    """Give each position the scores of the one before it in the batch."""
    return scores.take(np.roll(np.arange(len(scores.tail_logprobs)), 1))


def mixed_up(scores: Scores, batch: Batch) -> Scores:
    """Give rows in the order of their lengths."""
    lengths = np.array([len(r) for r in batch])
    row = np.repeat(np.arange(len(batch)), lengths)
    return scores.take(np.lexsort((offsets_within(lengths), lengths[row])))


@pytest.mark.parametrize("change", [from_one_on, off_by_one, mixed_up])
def test_a_row_that_depends_on_its_neighbours_is_told_in_nats(change: Change) -> None:
    noise = noise_of(change)
    assert noise.max >= noise.mean > 0.05
    with pytest.raises(DataError, match=r"teachers\.big.*differ by .* Nothing was scored"):
        noise.check(0.05, where="teachers.big")
    noise.check(noise.mean, where="x")


def sorted_rows(scores: Scores, batch: Batch) -> Scores:
    """Give the shortest rows first, wherever they stood."""
    lengths = np.array([len(r) for r in batch])
    return scores.take(token_index(lengths, np.argsort(lengths, kind="stable")))


def beside_others(scores: Scores, batch: Batch) -> Scores:
    """Lower every token that is not scored alone."""
    return replace(scores, token_logprob=scores.token_logprob - np.float32(len(batch) > 1))


@pytest.mark.parametrize("change", [sorted_rows, beside_others])
def test_rows_are_scored_in_another_order_and_alone(change: Change) -> None:
    order = np.argsort([len(r) for r in RESPONSES])
    prompts, responses = [PROMPTS[i] for i in order], [RESPONSES[i] for i in order]
    noise = scoring_noise(Known(change), prompts, responses, signal=Signal(K), vocab_size=V)
    assert noise.max >= noise.mean > 0.05


def shuffled(scores: Scores, batch: Batch) -> Scores:
    return replace(scores, topk_logprobs=scores.topk_logprobs[:, ::-1])


def twice(scores: Scores, batch: Batch) -> Scores:
    return replace(scores, topk_ids=np.repeat(scores.topk_ids[:, :1], K, axis=1))


def too_high(scores: Scores, batch: Batch) -> Scores:
    return replace(scores, topk_ids=scores.topk_ids + V)


def no_number(scores: Scores, batch: Batch) -> Scores:
    return replace(scores, token_logprob=np.full_like(scores.token_logprob, np.nan))


def first_elsewhere(scores: Scores, batch: Batch) -> Scores:
    return replace(scores, token_rank=np.ones_like(scores.token_rank))


def one_short(scores: Scores, batch: Batch) -> Scores:
    return scores.take(np.arange(len(scores.tail_logprobs) - 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_short, "top-k ids for 10 tokens and k = 3"),
        (shuffled, "not in rank order"),
        (twice, "names an id twice"),
        (too_high, "outside \\[0, 20\\)"),
        (no_number, "holds NaN"),
        (first_elsewhere, "not the first of its top-k"),
    ],
)
def test_scores_that_are_no_top_k_are_refused(change: Change, words: str) -> None:
    with pytest.raises(DataError, match=words):
        noise_of(change)


def test_a_noise_that_is_no_number_does_not_pass() -> None:
    with pytest.raises(DataError):
        Noise(3, float("nan"), float("nan")).check(1.0, where="x")


def test_an_engine_is_tested_once_and_again_after_a_failure() -> None:
    engine = Known(off_by_one)
    test = SelfTest(Signal(K, draws=5), vocab_size=V, tolerance=1e-3, where="teachers.big")
    with pytest.raises(DataError):
        test.once(engine, PROMPTS, RESPONSES)
    assert test.noise is None
    engine.change = lambda scores, batch: scores
    test.once(engine, PROMPTS, RESPONSES)
    asked = len(engine.asked)
    test.once(engine, PROMPTS, RESPONSES)
    assert test.noise == Noise(10, 0.0, 0.0) and len(engine.asked) == asked


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_a_few_rows_of_mixed_lengths_are_tested_and_none_that_is_long(lengths: list[int]) -> None:
    found = few_rows(np.array(lengths)).tolist()
    assert found == sorted(set(found)) and 1 <= len(found) <= ROWS
    short = sorted(length for length in lengths if length <= TOKENS // ROWS)
    chosen = sorted(lengths[row] for row in found)
    assert chosen[0] == min(lengths)
    if short:
        assert len(chosen) == min(ROWS, len(short)) and chosen[-1] == short[-1]
        assert sum(chosen) <= TOKENS


def test_the_tolerance_is_that_of_the_number_format_unless_it_is_set() -> None:
    section = ScoreSection(k=K)
    assert tolerance_of(section, "float32") < tolerance_of(section, "bfloat16")
    set_ = section.model_copy(update={"noise_tolerance": 0.5})
    assert tolerance_of(set_, "float32") == tolerance_of(set_, "float16") == 0.5
