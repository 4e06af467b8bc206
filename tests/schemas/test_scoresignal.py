"""Signals and the table of score columns: what is there, what is named, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError, DataError
from schemas.scoresignal import FURTHER, SCORE_COLUMNS, Kind, Signal, signal_for

TOPK = ["topk_ids", "topk_logprobs"]
ALWAYS = ["tail_logprobs", "token_logprob", "token_rank"]
CANDIDATES = ["candidate_ids", "candidate_logprobs", "candidate_count"]
SAMPLE = ["sample_ids", "sample_logprobs", "sample_count", "sample_threshold"]


@st.composite
def signals(draw: st.DrawFn) -> Signal:
    candidates = draw(st.integers(0, 3))
    return Signal(
        k=draw(st.integers(1, 9)),
        uneven=candidates > 0 and draw(st.booleans()),
        sample=draw(st.integers(0, 3)),
        top_p=draw(st.none() | st.floats(0.1, 0.9)),
        tail_buckets=draw(st.integers(1, 4)),
        candidates=candidates,
        draws=draw(st.integers(0, 3)),
        temperatures=tuple(draw(st.lists(st.floats(0.1, 9), max_size=3, unique=True))),
        tail=draw(st.sampled_from(["exact", "derived"])),
        entropy=draw(st.booleans()),
    )


@given(signals())
def test_a_signal_comes_back_from_its_words(signal: Signal) -> None:
    assert Signal.of(signal.words()) == signal


def test_an_identity_names_what_is_not_off() -> None:
    assert Signal(3).words() == {"k": 3}
    assert Signal(3, draws=2, entropy=False).words() == {"k": 3, "draws": 2, "entropy": False}


def test_a_signal_of_a_newer_opd_is_named() -> None:
    with pytest.raises(DataError, match="signal 'momentum'.*install a newer opd"):
        Signal.of({"k": 3, "momentum": True})


@pytest.mark.parametrize(
    ("signal", "further"),
    [
        (Signal(2, entropy=False), TOPK),
        (Signal(2), [*TOPK, "entropy"]),
        (Signal(2, top_p=0.5), [*TOPK, "topk_count", "entropy"]),
        (Signal(2, candidates=1, entropy=False), [*TOPK, "candidate_ids", "candidate_logprobs"]),
        (Signal(2, draws=1, entropy=False), [*TOPK, "draw_ids", "draw_counts"]),
        (Signal(2, sample=3, entropy=False), [*TOPK, *SAMPLE]),
        (Signal(0, sample=3, entropy=False), SAMPLE),
        (Signal(2, temperatures=(2.0,), entropy=False), [*TOPK, "log_normalisers"]),
        (Signal(0, candidates=2, entropy=False), ["candidate_ids", "candidate_logprobs"]),
        (Signal(0, candidates=2, uneven=True, entropy=False), CANDIDATES),
    ],
)
def test_each_part_of_a_signal_has_its_columns(signal: Signal, further: list[str]) -> None:
    names = [column.name for column in signal.columns]
    assert sorted(names) == sorted([*ALWAYS, *further])
    assert names == [column.name for column in SCORE_COLUMNS if column.name in names]


def test_columns_that_every_signal_has_are_never_null() -> None:
    assert [column.name for column in SCORE_COLUMNS if not column.is_optional] == ALWAYS


def test_what_counts_is_a_number_and_comes_with_what_it_counts() -> None:
    counts = {column.name: column for column in SCORE_COLUMNS if column.most is not None}
    assert {column.counted_by for column in SCORE_COLUMNS} - {None} == counts.keys()
    assert {column.kind for column in counts.values()} == {Kind.NUMBERS}


@pytest.mark.parametrize("name", FURTHER)
def test_a_server_gives_nothing_that_needs_full_logits(name: str) -> None:
    some: dict[str, Any] = {"temperatures": [2.0], "uneven": True}
    signal = replace(Signal(3), **{name: some.get(name, 2)})
    with pytest.raises(ConfigError, match=f"{name} needs full logits"):
        signal_for("server", signal)
    assert signal_for("hf", signal) == signal
    assert signal_for("server", Signal(3)) == Signal(3, tail="derived", entropy=False)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"k": 0},
        {"k": "3"},
        {"k": True},
        {"k": 2**30},
        {"k": 3, "min_k": 4},
        {"k": 3, "top_p": 0},
        {"k": 3, "top_p": "0.5"},
        {"k": 3, "tail_buckets": 0},
        {"k": 3, "draws": -1},
        {"k": 3, "sample": -1},
        {"k": 0, "draws": 3},
        {"k": 0, "sample": 3, "top_p": 0.5},
        {"k": 0, "sample": 3, "min_k": 2},
        {"k": 3, "tail": "none"},
        {"k": 3, "entropy": 1},
        {"k": 3, "uneven": True},
        {"k": 3, "candidates": 2, "uneven": 1},
        {"k": 3, "temperatures": 2.0},
        {"k": 3, "temperatures": ["2"]},
        {"k": 3, "temperatures": [0.0]},
        {"k": 3, "temperatures": [2.0, 2.0]},
        {"k": 3, "temperatures": [1.0 + n for n in range(1, 18)]},
    ],
)
def test_a_signal_that_no_configuration_gives_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="a signal that no teacher gives"):
        Signal.of(words)
