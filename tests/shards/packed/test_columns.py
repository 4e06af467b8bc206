"""Packed columns: what does not fit together is refused."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from pipeline.scores.columns import table_of
from pipeline.shards.codec import CODECS
from pipeline.shards.packed.ranked import put
from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import check_scores
from tests.support.anyscores import make_scores, through


def test_scores_out_of_rank_order_are_not_packed() -> None:
    signal = Signal(2)
    scores = make_scores(np.random.default_rng(0), 3, signal, 9)
    scores.topk_logprobs[1] = [-3.0, -1.0]
    table = table_of(["a"], scores, np.array([3]), signal)
    with pytest.raises(DataError, match="not in rank order"):
        through("packed-v1", table, signal, 9)


def packed(vocab: int = 1000) -> tuple[pa.Table, Signal]:
    signal = Signal(5, top_p=0.5, tail_buckets=2)
    exact = make_scores(np.random.default_rng(3), 40, signal, vocab)
    table = table_of(["a", "b"], exact, np.array([30, 10]), signal)
    stored = CODECS["packed-v1"].encode(table, signal=signal, vocab_size=vocab, renumbering=None)
    return stored, signal


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\xff", lambda b: b[:0]])
@pytest.mark.parametrize(
    "name",
    ["topk_ids", "topk_ids_more", "topk_ids_low", "topk_steps", "topk_long_steps", "topk_count"],
)
def test_bytes_that_do_not_fit_together_are_refused(name: str, change: Change) -> None:
    stored, signal = packed()
    values = stored.column(name).to_pylist()
    if change(values[0]) == values[0]:
        pytest.skip("there is nothing to remove")
    values[0] = change(values[0])
    index = stored.column_names.index(name)
    field = stored.schema.field(name)
    broken = stored.set_column(index, field, pa.array(values, field.type))
    with pytest.raises(DataError, match="^store/x"):
        table = CODECS["packed-v1"].decode(
            broken, signal=signal, vocab_size=1000, renumbering=None, where="store/x"
        )
        check_scores(table, signal=signal, where="store/x")


def test_a_position_without_a_top_k_is_refused() -> None:
    stored, signal = packed()
    counts = np.frombuffer(stored.column("topk_count").to_pylist()[1], np.uint8).copy()
    counts[-2:] = [counts[-2:].sum(), 0]  # the row still has as many ids as its counts say
    values = [stored.column("topk_count").to_pylist()[0], counts.tobytes()]
    index, field = stored.column_names.index("topk_count"), stored.schema.field("topk_count")
    broken = stored.set_column(index, field, pa.array(values, field.type))
    with pytest.raises(DataError, match="store/x.*top-k ids"):
        CODECS["packed-v1"].decode(
            broken, signal=signal, vocab_size=1000, renumbering=None, where="store/x"
        )


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)


@pytest.mark.parametrize(("name", "level"), [("entropy", 0x1FC1), ("tail_logprobs", 0x1FC1)])
def test_a_level_below_that_of_no_probability_at_all_is_refused(name: str, level: int) -> None:
    stored, signal = packed()
    counts = [len(row) for row in stored.column(name).to_pylist()]
    numbers = np.full(sum(counts), level - 1, np.int32)
    for value, fits in ((level - 1, True), (level, False), ((1 << 24) - 1, False)):
        numbers[3] = value
        for part, column in put(name, numbers, np.array(counts)).items():
            stored = with_column(stored, part, column)
        given = {"signal": signal, "vocab_size": 1000, "renumbering": None, "where": "store/x"}
        if fits:
            CODECS["packed-v1"].decode(stored, **given)  # type: ignore[arg-type]
            continue
        with pytest.raises(DataError, match=f"store/x: '{name}' holds a number outside"):
            CODECS["packed-v1"].decode(stored, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0x4000, (1 << 24) - 1])
def test_steps_that_fall_below_every_probability_are_refused(step: int) -> None:
    stored, signal = packed()
    counts = [len(row) for row in stored.column("topk_long_steps").to_pylist()]
    numbers = np.zeros(sum(counts), np.int32)
    numbers[0] = step
    for part, column in put("topk_long_steps", numbers, np.array(counts)).items():
        stored = with_column(stored, part, column)
    with pytest.raises(DataError, match="store/x: 'topk_steps' fall below every log-probability"):
        CODECS["packed-v1"].decode(
            stored, signal=signal, vocab_size=1000, renumbering=None, where="store/x"
        )
