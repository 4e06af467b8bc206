"""Score tables against the engine's own numbers, row by row."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import VOCABULARY
from pipeline.scores.columns import scores_of
from pipeline.scores.scores import Scores
from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.columns import Ids, list_rows
from schemas.config.engines import EngineSection
from schemas.errors import DataError
from schemas.records.shards import Shard
from schemas.scoresignal import Signal
from schemas.tables import ROLLOUT, check_scores
from tests.support import tiny
from tests.support.tinytables import make_scorer, rollout_table, store_scores

K, V = 4, len(VOCABULARY)
SCORER = make_scorer(k=K, vocab=V)
EXACT = ("tail_logprobs", "token_logprob", "token_rank", "entropy")
Change = Callable[[Scores], Scores]


class CountingEngine:
    """A real engine that counts what it is asked, and may spoil what it answers."""

    name, version, vocab_size, context_length = "hf", "1", V, 128

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine that somebody else closes."""
        self._engine = engine
        self.seen: list[bytes] = []
        self.change: Change = lambda scores: scores

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Refuse: scoring samples nothing."""
        raise AssertionError("a teacher was asked to sample")

    def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], **kwargs: Any) -> Scores:
        """Return the engine's scores."""
        pairs = zip(prompts, responses, strict=True)
        self.seen += [p.tobytes() + b"|" + r.tobytes() for p, r in pairs]
        return self.change(self._engine.score(prompts, responses, **kwargs))

    def shrink(self) -> bool:
        """Return that there is no less to try."""
        return False

    def close(self) -> None:
        """Leave the wrapped engine open for the next test."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny.make_model(tmp_path_factory.mktemp("teacher"), teacher=True)
    source = ModelSource(str(folder), None, False)
    section = EngineSection(device="cpu")
    return open_engine(Start(source, section, dtype="float32", use="score"), print)


@pytest.fixture
def engine(model: Engine) -> CountingEngine:
    return CountingEngine(model)


def scored(rows: pa.Table, engine: CountingEngine) -> tuple[pa.Table, int]:
    with LazyEngine(lambda: engine, print) as lazy:
        return score_table(rows, lazy, SCORER.identity)


def stored(storage: Storage, table: pa.Table) -> Shard:
    (unit,) = store_scores(storage, [table], SCORER).units
    return unit.shard


def test_each_row_holds_the_engines_numbers_for_it(engine: CountingEngine, model: Engine) -> None:
    rows = rollout_table(9, vocab=V)
    table, _ = scored(rows, engine)
    check_scores(table, signal=Signal(K), where="x")
    assert table.column("sequence_digest") == rows.column("sequence_digest")
    prompts, responses = list_rows(rows, "prompt_ids"), list_rows(rows, "response_ids")
    names = ("topk_ids", "topk_logprobs", "tail_logprobs", *EXACT[1:])
    columns = {name: list_rows(table, name) for name in names}
    for row in range(9):
        alone = model.score([prompts[row]], [responses[row]], signal=Signal(K), vocab_size=V)
        found = {name: values[row] for name, values in columns.items()}
        assert found["topk_ids"].tolist() == alone.topk_ids.reshape(-1).tolist()
        exact = alone.topk_logprobs.reshape(-1)
        np.testing.assert_allclose(found["topk_logprobs"], exact, atol=1e-5)
        for name in EXACT:
            np.testing.assert_allclose(found[name], getattr(alone, name), atol=1e-5, err_msg=name)


def test_only_top_k_log_probabilities_are_rounded(
    engine: CountingEngine, model: Engine, memory: Storage
) -> None:
    rows = rollout_table(1, vocab=V, seed=3)
    table = read_scores(memory, stored(memory, scored(rows, engine)[0]), scorer=SCORER.key)
    exact = model.score(
        list_rows(rows, "prompt_ids"),
        list_rows(rows, "response_ids"),
        signal=Signal(K),
        vocab_size=V,
    )
    for name in EXACT:
        np.testing.assert_array_equal(list_rows(table, name)[0], getattr(exact, name))
    expected = exact.topk_logprobs.reshape(-1).astype(np.float16)
    np.testing.assert_array_equal(list_rows(table, "topk_logprobs")[0], expected)


def test_a_repeated_sequence_is_read_once(engine: CountingEngine) -> None:
    once = rollout_table(6, vocab=V)
    order = [3, 0, 0, 5, 1, 3, 2, 4, 0]
    table, tokens = scored(once.take(order), engine)
    whole, whole_tokens = scored(once, CountingEngine(engine._engine))
    assert table.equals(whole.take(order))
    assert len(engine.seen) == len(set(engine.seen)) == 6
    read = [
        len(p) + len(r)
        for p, r in zip(list_rows(once, "prompt_ids"), list_rows(once, "response_ids"), strict=True)
    ]
    assert tokens == whole_tokens == sum(read)


def test_no_rows_need_no_teacher() -> None:
    def refuse() -> Any:
        raise AssertionError("the teacher was loaded")

    with LazyEngine(refuse, print) as lazy:
        table, tokens = score_table(rollout_table(3).slice(0, 0), lazy, SCORER.identity)
    assert (table.num_rows, tokens) == (0, 0)
    assert len(write_scores(table, SCORER.identity)) > 0


def spoiled(name: str, value: float) -> Change:
    def change(scores: Scores) -> Scores:
        values = getattr(scores, name).copy()
        values.reshape(-1)[-1] = value
        return replace(scores, **{name: values})

    return change


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("topk_logprobs", np.nan, "topk_logprobs holds NaN"),
        ("tail_logprobs", np.nan, "tail_logprobs holds NaN"),
        ("token_logprob", np.nan, "token_logprob holds NaN"),
        ("entropy", np.nan, "entropy holds NaN"),
        ("topk_logprobs", 0.1, "positive log-probability"),
        ("token_logprob", 0.1, "positive log-probability"),
        ("tail_logprobs", 0.1, "positive log-probability"),
        ("topk_ids", V, f"an id outside \\[0, {V}\\)"),
        ("topk_ids", -1, f"an id outside \\[0, {V}\\)"),
    ],
)
def test_impossible_numbers_are_never_stored(
    engine: CountingEngine, name: str, value: float, message: str
) -> None:
    engine.change = spoiled(name, value)
    with pytest.raises(DataError, match=message):
        table, _ = scored(rollout_table(3, vocab=V), engine)
        write_scores(table, SCORER.identity)


def test_a_table_comes_back_from_its_bytes(engine: CountingEngine, memory: Storage) -> None:
    table, _ = scored(rollout_table(9, vocab=V), engine)
    once = read_scores(memory, stored(memory, table), scorer=SCORER.key)
    assert once.drop_columns(["topk_logprobs"]).equals(table.drop_columns(["topk_logprobs"]))
    assert read_scores(memory, stored(memory, once), scorer=SCORER.key).equals(once)


def test_every_signal_reaches_the_table(engine: CountingEngine, memory: Storage) -> None:
    signal = Signal(K, top_p=0.6, tail_buckets=3, candidates=2, draws=5)
    identity = SCORER.identity.model_copy(update={"signal": signal.words()})
    scorer = replace(SCORER, identity=identity)
    rows = rollout_table(6, vocab=V)
    lengths = [len(row) for row in list_rows(rows, "response_ids")]
    own = pa.array([[1, 2] * n for n in lengths], ROLLOUT.field("student_topk_ids").type)
    index = rows.schema.get_field_index("student_topk_ids")
    with_own = rows.set_column(index, ROLLOUT.field(index), own)
    with LazyEngine(lambda: engine, print) as lazy:
        table, _ = score_table(with_own, lazy, identity)
        with pytest.raises(DataError, match="does not hold 2 candidates"):
            score_table(rows, lazy, identity)
    shard = content_shard("data", data := write_scores(table, scorer.identity), rows=6, tokens=0)
    memory.put(shard.key, data)
    scores = scores_of(read_scores(memory, shard, scorer=scorer.key))
    assert scores.tail_logprobs.shape == (sum(lengths), 3)
    assert scores.candidate_ids is not None and (scores.candidate_ids == [1, 2]).all()
    assert scores.draw_ids is not None and scores.draw_ids.shape == (sum(lengths), 5)
    mass = np.exp(scores.topk_logprobs).sum(axis=1) + np.exp(scores.tail_logprobs).sum(axis=1)
    np.testing.assert_allclose(mass, 1, atol=2e-3)
    kept = np.exp(scores.topk_logprobs).cumsum(axis=1)
    last = (scores.topk_ids >= 0).sum(axis=1) - 1
    ends = kept[np.arange(len(last)), last]
    assert ((ends >= 0.6 - 1e-3) | (last == K - 1)).all()
