"""What a copy of opd does with one signal and one codec more: a child process of `test_growth`.

It is run with the path of the copy; every check is an assertion, and nothing here knows which
files were edited. The signal is `normaliser`: the log-normaliser at temperature 2 of each token.
"""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

import schemas
from cli.progress import QuietProgress
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.engines.hf.engine import HfEngine
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.reduction import check_derivable, derive
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals
from pipeline.shards.codec import CODECS
from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from pipeline.upkeep.export import export_scores
from pipeline.upkeep.figures import ScoreStats
from schemas.columns import flat_values, list_lengths
from schemas.config.engines import EngineSection
from schemas.config.run import signal_of
from schemas.errors import ConfigError, DataError
from schemas.fingerprint import fingerprint, sha256
from schemas.records.scores import ScorerIdentity
from schemas.scoresignal import Signal, signal_for
from schemas.tables import SCORES, check_scores
from tests.support import minimal, tiny
from tests.support.tinytables import VOCAB, K, make_scorer, rollout_table, score_rows

NAME = "log_normaliser"
WITH = Signal.of({"k": K, "normaliser": True})


def scored(folder: Path) -> Scores:
    """Return the scores of a real teacher, and check the new ones against its own logits."""
    logits = 3 * torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(0))
    token = torch.zeros(50, dtype=torch.int64)
    found = score_signals(logits.clone(), token, signal=WITH, vocab_size=VOCAB)
    expected = torch.logsumexp(logits.double() / 2, dim=-1)
    np.testing.assert_allclose(found[NAME].numpy(), expected.numpy(), atol=1e-5)
    assert NAME not in score_signals(logits, token, signal=Signal(K), vocab_size=VOCAB)
    source = ModelSource(str(tiny.make_model(folder / "model")), None, False)
    start = Start(source, EngineSection(device="cpu"), dtype="float32", use="score")
    engine = HfEngine(start, version="1")
    rows = rollout_table(9, vocab=VOCAB)
    with LazyEngine(lambda: engine, print) as lazy:
        table, _ = score_table(rows, lazy, identity_of("typed-v1"))
    assert len(flat_values(table, NAME)) == list_lengths(rows, "response_ids").sum()
    return scores_of(table)


def identity_of(codec: str) -> ScorerIdentity:
    """Return a scorer that keeps the new signal."""
    changes = {"codec": codec, "signal": WITH.words()}
    return make_scorer().identity.model_copy(update=changes)


def check_a_codec(codec: str, scores: Scores, folder: Path) -> None:
    """Make sure that a codec stores the column, and that it is exported."""
    rows, identity = rollout_table(9, vocab=VOCAB), identity_of(codec)
    digests = rows.column("sequence_digest").to_pylist()
    table = table_of(digests, scores, list_lengths(rows, "response_ids"), WITH)
    storage = Storage(str(folder / codec))
    published = ScoreCache(storage, identity, print).publish(
        fingerprint(digests), table, Origin("demo/0000", 0, 0)
    )
    storage.put(f"cache/{identity.key}/scorer.json", identity.to_bytes())
    back = read_scores(storage, published.commit.shard, scorer=identity.key)
    assert back.column(NAME).to_pylist() == table.column(NAME).to_pylist()
    np.testing.assert_array_equal(scores_of(back).further[NAME], scores.further[NAME])
    for kind in ("parquet", "jsonl"):
        target = folder / f"{codec}.{kind}"
        export_scores(storage, identity.key, target, kind=kind, progress=QuietProgress())
        frame = pl.read_parquet(target) if kind == "parquet" else pl.read_ndjson(target)
        found = frame[NAME].explode().cast(pl.Float32)
        assert found.to_list() == scores.further[NAME].tolist()
        assert "candidate_ids" not in frame.columns


def check_refusals(scores: Scores) -> None:
    """Make sure that a wrong length, NaN, and the column where it should be absent are refused."""
    values, lengths = scores.further[NAME], np.array([len(scores.token_rank)])
    spoiled = Scores.of({**scores.arrays(), NAME: np.where(values == values[3], np.nan, values)})
    with pytest.raises(DataError, match=f"{NAME} holds NaN"):
        spoiled.check(vocab_size=VOCAB, where="x")
    with pytest.raises(DataError, match=f"'{NAME}' holds NaN"):
        check_scores(table_of(["a"], spoiled, lengths, WITH), signal=WITH, where="x")
    table = table_of(["a"], scores, lengths, WITH)
    longer = pa.array([[*values.tolist(), 1.0]], SCORES.field(NAME).type)
    table = table.set_column(SCORES.names.index(NAME), SCORES.field(NAME), longer)
    with pytest.raises(DataError, match=f"values in '{NAME}', expected {len(values)}"):
        check_scores(table, signal=WITH, where="x")
    with pytest.raises(DataError, match=f"'{NAME}' holds 0 nulls in 1 rows, which its signal"):
        check_scores(table_of(["a"], scores, lengths, WITH), signal=Signal(K), where="x")


def check_absence(scores: Scores) -> None:
    """Make sure that a smaller signal leaves the column out, and that none can be made up."""
    assert NAME not in derive(scores, Signal(2)).arrays()
    assert NAME in derive(scores, Signal.of({"k": 2, "normaliser": True})).arrays()
    check_derivable(WITH, Signal(K))
    with pytest.raises(ConfigError, match="normaliser = True cannot be made"):
        check_derivable(Signal(K), WITH)
    with pytest.raises(ConfigError, match="normaliser needs full logits"):
        signal_for("server", WITH)
    table = table_of(["a"], scores, np.array([len(scores.token_rank)]), Signal(K))
    assert table.column(NAME).null_count == 1
    check_scores(table, signal=Signal(K), where="x")


def check_the_rest(scores: Scores) -> None:
    """Make sure that the key is read, positions can be taken, and odd values are counted."""
    assert signal_of(minimal.parse("score.normaliser=true", "score.k=3")) == WITH
    assert signal_of(minimal.parse()) == Signal(8)
    assert "full logits" in minimal.message("score.engine=server", "score.normaliser=true")
    twice = Scores.joined([scores, scores]).take(np.array([1, len(scores.token_rank) + 1]))
    assert twice.further[NAME].tolist() == [scores.further[NAME][1]] * 2
    stats = ScoreStats()
    stats.add(table_of(["a"], scores, np.array([len(scores.token_rank)]), WITH))
    assert NAME in stats.odd


def main(copy: Path, folder: Path) -> None:
    """Check everything, and print what older scorers give with the copy."""
    assert Path(str(schemas.__file__)).is_relative_to(copy), schemas.__file__
    scores = scored(folder)
    for codec in CODECS:
        check_a_codec(codec, scores, folder)
    check_refusals(scores)
    check_absence(scores)
    check_the_rest(scores)
    older = {}
    for codec in ("typed-v1", "packed-v1"):
        identity = make_scorer().identity.model_copy(update={"codec": codec})
        older[identity.key] = sha256(write_scores(score_rows(rollout_table(9)), identity))
    print(json.dumps({"codecs": list(CODECS), "older": older}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
