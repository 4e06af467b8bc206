"""The checks of table shapes: well-formed tables pass, and each damage is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columns import flat_values, list_lengths
from schemas.errors import DataError
from schemas.rewardtable import REWARDS, check_rewards
from schemas.scoresignal import Signal
from schemas.tables import (
    PROMPTS,
    ROLLOUT,
    SCORES,
    check_rollout,
    check_scores,
    check_table,
)

K = 3
Rows = dict[str, list[Any]]
OPTIONAL = ("topk_count", "candidate_ids", "candidate_logprobs", "draw_ids", "draw_counts")
UNEVEN = ("candidate_count",)
SAMPLE = ("sample_ids", "sample_logprobs", "sample_count", "sample_threshold", "log_normalisers")
LENGTHS = st.lists(st.integers(1, 5), max_size=4)


def rollout_rows(lengths: list[int]) -> Rows:
    rows = len(lengths)
    return {
        "sequence_id": [f"s{row}" for row in range(rows)],
        "sequence_digest": [f"{row:032x}" for row in range(rows)],
        "prompt_id": ["p"] * rows,
        "sample_index": list(range(rows)),
        "round": [0] * rows,
        "policy_version": ["v"] * rows,
        "prompt_ids": [[1, 2]] * rows,
        "response_ids": [list(range(length)) for length in lengths],
        "response_mask": [[True] * length for length in lengths],
        "rollout_student_logprobs": [[-0.5] * length for length in lengths],
        "student_topk_ids": [None] * rows,
        "student_topk_logprobs": [None] * rows,
        "student_sample_ids": [None] * rows,
        "student_sample_logprobs": [None] * rows,
        "student_sample_count": [None] * rows,
        "finish_reason": ["stop"] * rows,
        "seed": [2**62] * rows,
        "teacher": ["big"] * rows,
        "weight": [1.0] * rows,
        "reward": [None] * rows,
        "reference": [None] * rows,
        "metadata": [None] * rows,
        "text": [None] * rows,
    }


def score_rows(lengths: list[int]) -> Rows:
    return {
        "sequence_digest": [f"{row:032x}" for row in range(len(lengths))],
        "topk_ids": [list(range(length * K)) for length in lengths],
        "topk_logprobs": [[-1.0] * length * K for length in lengths],
        "tail_logprobs": [[float("-inf")] * length for length in lengths],
        "token_logprob": [[-2.0] * length for length in lengths],
        "token_rank": [[0] * length for length in lengths],
        "entropy": [[0.7] * length for length in lengths],
        **{name: [None] * len(lengths) for name in (*OPTIONAL, *SAMPLE, *UNEVEN)},
    }


def rollout(rows: Rows) -> pa.Table:
    return pa.table(rows, schema=ROLLOUT)


def scores(rows: Rows) -> pa.Table:
    return pa.table(rows, schema=SCORES)


@given(LENGTHS)
def test_a_well_formed_rollout_passes(lengths: list[int]) -> None:
    check_rollout(rollout(rollout_rows(lengths)), where="x")


@given(LENGTHS)
def test_well_formed_scores_pass(lengths: list[int]) -> None:
    check_scores(scores(score_rows(lengths)), signal=Signal(K), where="x")


def test_slices_and_chunks_are_checked_by_their_own_rows() -> None:
    table = rollout(rollout_rows([1, 2, 3]))
    for part in (table.slice(1), table.slice(0, 1), pa.concat_tables([table, table.slice(2)])):
        check_rollout(part, where="x")
    bad = rollout_rows([1, 2, 3])
    bad["rollout_student_logprobs"][0] = [0.5]
    check_rollout(rollout(bad).slice(1), where="x")
    with pytest.raises(DataError):
        check_rollout(pa.concat_tables([table, rollout(bad)]), where="x")


@pytest.mark.parametrize("schema", [PROMPTS, ROLLOUT, REWARDS, SCORES])
def test_every_missing_column_is_named(schema: pa.Schema) -> None:
    table = schema.empty_table()
    check_table(table, schema, where="x")
    for name in schema.names:
        with pytest.raises(DataError, match=f"store/x: column '{name}' is missing"):
            check_table(table.drop_columns([name]), schema, where="store/x")


def test_a_wrong_type_is_named() -> None:
    table = rollout(rollout_rows([2]))
    index = table.column_names.index("response_ids")
    wide = table["response_ids"].cast(pa.list_(pa.int64()))
    table = table.set_column(index, "response_ids", wide)
    with pytest.raises(DataError, match=r"'response_ids' has type list<.*int64>, expected list<"):
        check_rollout(table, where="x")


@pytest.mark.parametrize("name", [field.name for field in ROLLOUT if not field.nullable])
def test_a_null_where_none_may_be_is_named(name: str) -> None:
    rows = rollout_rows([2, 2])
    rows[name][1] = None
    loose = pa.schema([field.with_nullable(True) for field in ROLLOUT])
    with pytest.raises(DataError, match=f"column '{name}' holds 1 nulls"):
        check_rollout(pa.table(rows, schema=loose), where="x")


def test_a_further_column_is_allowed() -> None:
    table = rollout(rollout_rows([2])).append_column("added_later", pa.array([1]))
    check_rollout(table, where="x")


@pytest.mark.parametrize("name", ["response_mask", "rollout_student_logprobs"])
def test_a_rollout_list_of_another_length_is_named(name: str) -> None:
    rows = rollout_rows([2, 3])
    rows[name][1] = rows[name][1][:-1]
    with pytest.raises(DataError, match=f"store/x: row 1 has 2 values in '{name}', expected 3"):
        check_rollout(rollout(rows), where="store/x")


@pytest.mark.parametrize("name", ["prompt_ids", "response_ids"])
def test_an_empty_prompt_or_response_is_refused(name: str) -> None:
    rows = rollout_rows([2, 3])
    rows[name][0] = []
    with pytest.raises(DataError, match="empty prompt or response"):
        check_rollout(rollout(rows), where="x")


@pytest.mark.parametrize(
    "name", ["tail_logprobs", "token_rank", "entropy", "topk_ids", "topk_logprobs"]
)
@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: [*v, v[0]], lambda v: v[:0]])
def test_a_score_list_of_another_length_is_named(name: str, change: Callable[[Any], Any]) -> None:
    rows = score_rows([2, 3])
    rows[name][1] = change(rows[name][1])
    with pytest.raises(DataError, match=f"row 1 has .* values in '{name}', expected"):
        check_scores(scores(rows), signal=Signal(K), where="x")


def test_an_absent_entropy_is_null_and_never_a_number() -> None:
    rows, signal = score_rows([2, 3]), Signal(K, entropy=False)
    with pytest.raises(DataError, match="'entropy' holds 0 nulls in 2 rows, which its signal"):
        check_scores(scores(rows), signal=signal, where="x")
    rows["entropy"] = [None, None]
    check_scores(scores(rows), signal=signal, where="x")
    with pytest.raises(DataError, match="'entropy' holds 2 nulls in 2 rows, which its signal"):
        check_scores(scores(rows), signal=Signal(K), where="x")
    rows["entropy"] = [None, [0.5] * 3]
    with pytest.raises(DataError, match="'entropy' holds 1 nulls"):
        check_scores(scores(rows), signal=signal, where="x")


def test_a_table_of_another_k_is_refused() -> None:
    with pytest.raises(DataError, match="row 0 has 6 values in 'topk_ids', expected 8"):
        check_scores(scores(score_rows([2, 3])), signal=Signal(K + 1), where="x")


@pytest.mark.parametrize("name", ["topk_logprobs", "tail_logprobs", "token_logprob"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5])
def test_what_is_no_log_probability_is_refused(name: str, value: float) -> None:
    rows = score_rows([2, 3])
    rows[name][1] = np.array(rows[name][1], np.float32)
    rows[name][1][1] = value
    with pytest.raises(DataError, match=f"store/x: '{name}' holds .*no log-probability"):
        check_scores(scores(rows), signal=Signal(K), where="store/x")


@pytest.mark.parametrize(
    ("value", "says"), [("nan", "no log-probability"), ("-inf", "an id was drawn")]
)
def test_a_student_log_probability_that_is_none_is_refused(value: str, says: str) -> None:
    rows = rollout_rows([2])
    rows["rollout_student_logprobs"][0] = [-0.1, float(value)]
    with pytest.raises(DataError, match=says):
        check_rollout(rollout(rows), where="x")


def test_rounding_above_zero_is_a_log_probability() -> None:
    rows = score_rows([1])
    rows["token_logprob"][0] = [1e-6]
    check_scores(scores(rows), signal=Signal(K), where="x")


def test_lengths_and_values_are_those_of_the_rows() -> None:
    table = rollout(rollout_rows([1, 3, 2]))
    assert list_lengths(table, "response_ids").tolist() == [1, 3, 2]
    assert flat_values(table, "response_ids").tolist() == [0, 0, 1, 2, 0, 1]
    part = table.slice(1, 1)
    assert list_lengths(part, "response_ids").tolist() == [3]
    assert flat_values(part, "response_ids").tolist() == [0, 1, 2]
    joined = pa.concat_tables([part, table.slice(2)])
    assert flat_values(joined, "response_ids").tolist() == [0, 1, 2, 0, 1]
    assert flat_values(ROLLOUT.empty_table(), "response_ids").tolist() == []
    assert flat_values(table, "response_mask").tolist() == [True] * 6


def test_a_list_that_holds_a_null_is_refused() -> None:
    rows = rollout_rows([2, 3])
    rows["response_ids"][1][1] = None
    with pytest.raises(DataError, match="x: lists of column 'response_ids' hold nulls"):
        check_table(pa.table(rows, schema=ROLLOUT), ROLLOUT, where="x")


def rewards(*rows: tuple[float | None, str | None]) -> pa.Table:
    names = {name: ["a"] * len(rows) for name in ("sequence_id", "sequence_digest", "prompt_id")}
    columns = dict(zip(("reward", "fault"), zip(*rows, strict=True), strict=True))
    return pa.table({**names, **columns, "words": [None] * len(rows)}, schema=REWARDS)


def test_a_row_has_a_reward_or_a_fault() -> None:
    check_rewards(rewards((0.5, None), (None, "raised")), where="here")
    for row, words in (
        ((0.5, "raised"), "here: row 1 has a reward and a fault"),
        ((None, None), "here: row 1 has neither a reward nor a fault"),
        ((float("nan"), None), "holds a number that is not finite"),
        ((float("-inf"), None), "holds a number that is not finite"),
    ):
        with pytest.raises(DataError, match=words):
            check_rewards(rewards((0.5, None), row), where="here")


def test_a_sample_may_have_no_id_at_a_token_and_never_more_than_it_has_places() -> None:
    signal = Signal(K, sample=2)
    rows = score_rows([3])
    rows["sample_ids"], rows["sample_logprobs"] = [[5, 6, 7]], [[-1.0] * 3]
    rows["sample_count"], rows["sample_threshold"] = [[2, 0, 1]], [[-2.0] * 3]
    check_scores(scores(rows), signal=signal, where="x")
    rows["sample_count"] = [[3, 0, 0]]
    with pytest.raises(DataError, match=r"'sample_count' holds a count outside \[0, 2\]"):
        check_scores(scores(rows), signal=signal, where="x")


def test_a_token_has_a_candidate_at_least_and_no_more_than_the_signal_says() -> None:
    signal = Signal(K, candidates=2, uneven=True)
    rows = score_rows([3])
    rows["candidate_ids"], rows["candidate_logprobs"] = [[5, 6, 7, 8]], [[-1.0] * 4]
    rows["candidate_count"] = [[2, 1, 1]]
    check_scores(scores(rows), signal=signal, where="x")
    for counts, words in (
        ([3, 1, 0], r"'candidate_count' holds a count outside \[1, 2\]"),
        ([2, 2, 1], "row 0 has 4 values in 'candidate_ids', expected 5"),
        ([2, 2], "row 0 has 2 values in 'candidate_count', expected 3"),
    ):
        rows["candidate_count"] = [counts]
        with pytest.raises(DataError, match=words):
            check_scores(scores(rows), signal=signal, where="x")
