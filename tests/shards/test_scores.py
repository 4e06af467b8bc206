"""Score tables against the engine's own numbers, row by row, and what is refused on the way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.hf.engine import HfEngine
from pipeline.engines.lazy import LazyEngine
from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import VOCABULARY
from pipeline.scores.columns import scores_of
from pipeline.scores.scores import Scores
from pipeline.shards.parquet import write_table
from pipeline.shards.scores import _renumbering, pinned_renumbering, read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from pipeline.teachers.teacher import Scorer
from schemas.columns import Ids, list_rows
from schemas.config.engines import EngineSection
from schemas.errors import DataError, IdentityError
from schemas.records.shards import Shard
from schemas.scoresignal import Signal
from schemas.tables import ROLLOUT, check_scores
from tests.support import tiny
from tests.support.tinytables import make_scorer, rollout_table, score_rows

K, V = 4, len(VOCABULARY)
SCORER = make_scorer(k=K, vocab=V)
EXACT = ("tail", "token_logprob", "token_rank", "entropy")
Change = Callable[[Scores], Scores]


class CountingEngine:
    """A real engine that counts what it is asked, and may spoil what it answers."""

    name, version, vocab_size, context_length = "hf", "1", V, 128

    def __init__(self, engine: HfEngine) -> None:
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
def model(tmp_path_factory: pytest.TempPathFactory) -> HfEngine:
    folder = tiny.make_model(tmp_path_factory.mktemp("teacher"), teacher=True)
    source = ModelSource(str(folder), None, False)
    return HfEngine(source, dtype="float32", settings=EngineSection(device="cpu"))


@pytest.fixture
def engine(model: HfEngine) -> CountingEngine:
    return CountingEngine(model)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Storage:
    return Storage(f"memory://{abs(hash(request.node.nodeid))}")


def scored(rows: pa.Table, engine: CountingEngine) -> tuple[pa.Table, int]:
    with LazyEngine(lambda: engine) as lazy:
        return score_table(rows, lazy, SCORER.identity)


def stored(storage: Storage, table: pa.Table) -> Shard:
    data = write_scores(table, SCORER.identity)
    shard = content_shard("data", data, rows=table.num_rows, tokens=0)
    storage.put(shard.key, data)
    return shard


def test_each_row_holds_the_engines_numbers_for_it(engine: CountingEngine, model: HfEngine) -> None:
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
        found["tail"] = found["tail_logprobs"]
        for name in EXACT:
            np.testing.assert_allclose(found[name], getattr(alone, name), atol=1e-5, err_msg=name)


def test_only_top_k_log_probabilities_are_rounded(
    engine: CountingEngine, model: HfEngine, memory: Storage
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
        column = "tail_logprobs" if name == "tail" else name
        np.testing.assert_array_equal(list_rows(table, column)[0], getattr(exact, name))
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

    with LazyEngine(refuse) as lazy:
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
        ("tail", np.nan, "tail holds NaN"),
        ("token_logprob", np.nan, "token_logprob holds NaN"),
        ("entropy", np.nan, "entropy holds NaN"),
        ("topk_logprobs", 0.1, "positive log-probability"),
        ("token_logprob", 0.1, "positive log-probability"),
        ("tail", 0.1, "no log-probability"),
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


def test_an_empty_tail_comes_back_as_such(memory: Storage) -> None:
    table = score_rows(rollout_table(2), k=K)
    index = table.schema.get_field_index("tail_logprobs")
    lengths = [len(row) for row in table.column("tail_logprobs").to_pylist()]
    empty = pa.array([[float("-inf")] * n for n in lengths], table.schema.field(index).type)
    table = table.set_column(index, table.schema.field(index), empty)
    back = read_scores(memory, stored(memory, table), scorer=SCORER.key)
    assert back.column("tail_logprobs").to_pylist() == empty.to_pylist()


def test_the_scores_of_another_scorer_are_refused(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K))
    for other in (make_scorer("other", k=K, vocab=V), make_scorer(k=K + 1, vocab=V)):
        with pytest.raises(IdentityError) as caught:
            read_scores(memory, shard, scorer=other.key)
        assert SCORER.key in str(caught.value) and other.key in str(caught.value)
        assert memory.url(shard.key) in str(caught.value)


def test_a_parquet_file_that_is_no_score_shard_is_refused(memory: Storage) -> None:
    data = write_table(rollout_table(2), {})
    shard = content_shard("data", data, rows=2, tokens=0)
    memory.put(shard.key, data)
    with pytest.raises(IdentityError, match="holds scores of scorer None"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_shard_with_another_number_of_rows_than_its_commit_is_refused(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K)).model_copy(update={"rows": 3})
    with pytest.raises(DataError, match="has 2 rows, its commit says 3"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_missing_or_corrupt_shard_is_named(memory: Storage) -> None:
    shard = stored(memory, score_rows(rollout_table(2), k=K))
    memory.put(shard.key, (memory.get(shard.key) or b"")[:-1])
    with pytest.raises(DataError, match=f"{shard.key} is corrupt"):
        read_scores(memory, shard, scorer=SCORER.key)
    memory.delete(shard.key)
    with pytest.raises(DataError, match=f"{shard.key} is missing"):
        read_scores(memory, shard, scorer=SCORER.key)


def test_a_table_with_another_k_than_its_scorer_is_never_written() -> None:
    with pytest.raises(DataError, match="'topk_ids'"):
        write_scores(score_rows(rollout_table(2), k=K - 1), SCORER.identity)


# --- packed-v1 ---


def packed_scorer(name: str = "main") -> Scorer:
    scorer = make_scorer(name, k=K, vocab=V)
    return replace(scorer, identity=scorer.identity.model_copy(update={"codec": "packed-v1"}))


def store_packed(storage: Storage, table: pa.Table, scorer: Scorer) -> Shard:
    renumbering = pinned_renumbering(storage, scorer.identity, table)
    data = write_scores(table, scorer.identity, renumbering=renumbering)
    shard = content_shard("data", data, rows=table.num_rows, tokens=0)
    storage.put(shard.key, data)
    return shard


def test_packed_scores_come_back_by_the_first_units_renumbering(memory: Storage) -> None:
    scorer = packed_scorer()
    for seed in range(3):
        table = score_rows(rollout_table(4, seed=seed), k=K, seed=seed)
        back = read_scores(memory, store_packed(memory, table, scorer), scorer=scorer.key)
        exact = ["sequence_digest", "topk_ids", "token_rank", "token_logprob"]
        assert back.select(exact).equals(table.select(exact))
    assert len(memory.names(f"{scorer.folder}/renumbering")) == 1


def test_a_missing_or_corrupt_renumbering_is_named(memory: Storage) -> None:
    for spoil, message in ((lambda b: None, "is missing"), (lambda b: b[:-4], "is corrupt")):
        scorer = packed_scorer(message)
        shard = store_packed(memory, score_rows(rollout_table(4), k=K), scorer)
        folder = f"{scorer.folder}/renumbering"
        key = f"{folder}/{memory.names(folder).pop()}"
        data = spoil(memory.get(key) or b"")
        memory.delete(key) if data is None else memory.put(key, data)
        _renumbering.cache_clear()
        with pytest.raises(DataError, match=f"{key} {message}"):
            read_scores(memory, shard, scorer=scorer.key)


def test_open_scores_have_no_renumbering(memory: Storage) -> None:
    assert pinned_renumbering(memory, SCORER.identity, score_rows(rollout_table(2), k=K)) is None


def test_a_shard_of_a_newer_codec_is_named(memory: Storage) -> None:
    table = score_rows(rollout_table(2), k=K)
    data = write_table(table, {"scorer": SCORER.key, "codec": "packed-v9"})
    shard = content_shard("data", data, rows=2, tokens=0)
    memory.put(shard.key, data)
    with pytest.raises(DataError, match="codec 'packed-v9'.*install a newer opd"):
        read_scores(memory, shard, scorer=SCORER.key)


# --- signals ---


def test_every_signal_reaches_the_table(engine: CountingEngine, memory: Storage) -> None:
    signal = Signal(K, top_p=0.6, tail_buckets=3, candidates=2, draws=5)
    identity = SCORER.identity.model_copy(update={"signal": signal.words()})
    scorer = replace(SCORER, identity=identity)
    rows = rollout_table(6, vocab=V)
    lengths = [len(row) for row in list_rows(rows, "response_ids")]
    own = pa.array([[1, 2] * n for n in lengths], ROLLOUT.field("student_topk_ids").type)
    index = rows.schema.get_field_index("student_topk_ids")
    with_own = rows.set_column(index, ROLLOUT.field(index), own)
    with LazyEngine(lambda: engine) as lazy:
        table, _ = score_table(with_own, lazy, identity)
        with pytest.raises(DataError, match="does not hold 2 candidates"):
            score_table(rows, lazy, identity)
    shard = content_shard("data", data := write_scores(table, scorer.identity), rows=6, tokens=0)
    memory.put(shard.key, data)
    scores = scores_of(read_scores(memory, shard, scorer=scorer.key))
    assert scores.tail.shape == (sum(lengths), 3)
    assert scores.candidate_ids is not None and (scores.candidate_ids == [1, 2]).all()
    assert scores.draw_ids is not None and scores.draw_ids.shape == (sum(lengths), 5)
    mass = np.exp(scores.topk_logprobs).sum(axis=1) + np.exp(scores.tail).sum(axis=1)
    np.testing.assert_allclose(mass, 1, atol=2e-3)
    kept = np.exp(scores.topk_logprobs).cumsum(axis=1)
    last = (scores.topk_ids >= 0).sum(axis=1) - 1
    ends = kept[np.arange(len(last)), last]
    assert ((ends >= 0.6 - 1e-3) | (last == K - 1)).all()
