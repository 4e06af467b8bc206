"""A score shard can be read by docs/codecs.md alone, without any code of opd."""

import ast
import io
import re
from typing import Any

import numpy as np
import pytest

from pipeline.scores.columns import table_of
from pipeline.shards.codec import CODECS
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.scores import decode_scores, write_scores
from schemas.columns import flat_values
from schemas.records.scores import ScorerIdentity
from schemas.scoresignal import SCORE_COLUMNS, Signal
from tests.support.anyscores import make_scores
from tests.support.repository import REPOSITORY
from tests.support.tinytables import make_scorer

PAGE = (REPOSITORY / "docs" / "codecs.md").read_text(encoding="utf-8")
READER = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[-1]
SIGNALS = {
    "top-k": (Signal(k=20), 400_000),
    "few ids": (Signal(k=3), 9),
    "cut by top-p": (Signal(k=20, top_p=0.9, min_k=2, entropy=False), 300),
    "buckets and temperatures": (Signal(k=4, tail_buckets=5, temperatures=(0.5, 2.0)), 300),
    "candidates and draws": (Signal(k=4, candidates=3, draws=7), 300),
    "candidates by need": (Signal(k=4, candidates=9, uneven=True), 300),
    "samples": (Signal(k=5, sample=6), 300),
    "a sample alone": (Signal(k=0, sample=6), 300),
    "from a server": (Signal(k=4, tail="derived", entropy=False), 300),
}
LENGTHS = (1, 9, 40)


def identity_of(signal: Signal, vocab: int, codec: str) -> ScorerIdentity:
    words = {"signal": signal.words(), "vocab_size": vocab, "codec": codec}
    return make_scorer().identity.model_copy(update=words)


def shard_of(signal: Signal, vocab: int, codec: str) -> tuple[bytes, Renumbering | None]:
    """Return the bytes of a shard of random scores, and its table of ids."""
    random = np.random.default_rng(7)
    digests = [f"{row:064x}" for row in range(len(LENGTHS))]
    scores = make_scores(random, sum(LENGTHS), signal, vocab)
    table = table_of(digests, scores, np.array(LENGTHS), signal)
    ids = "topk_ids" if signal.k else "sample_ids"
    renumbering = None
    if CODECS[codec].renumbers:
        renumbering = Renumbering.learn(flat_values(table, ids), vocab_size=vocab)
    identity = identity_of(signal, vocab, codec)
    return write_scores(table, identity, renumbering=renumbering), renumbering


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_is_read_by_what_the_page_says(codec: str, name: str) -> None:
    signal, vocab = SIGNALS[name]
    data, renumbering = shard_of(signal, vocab, codec)
    page: dict[str, Any] = {}
    exec(compile(READER, "docs/codecs.md", "exec"), page)
    about, rows = page["read_shard"](
        io.BytesIO(data), None if renumbering is None else renumbering.to_bytes()
    )
    expected = decode_scores(data, renumbering=renumbering, where="x")
    assert about["codec"] == codec
    assert {"sequence_digest", *(c.name for c in signal.columns)} == rows[0].keys()
    for column in rows[0]:
        for row, value in zip(rows, expected.column(column).to_pylist(), strict=True):
            np.testing.assert_array_equal(row[column], value, err_msg=column)


def test_the_reader_of_the_page_knows_no_code_of_opd() -> None:
    nodes = list(ast.walk(ast.parse(READER)))
    imports = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert imports == {"json", "numpy", "pyarrow.parquet"}
    assert not any(isinstance(node, ast.ImportFrom) for node in nodes)


@pytest.mark.parametrize("column", SCORE_COLUMNS, ids=lambda c: c.name)
def test_the_page_tells_the_kind_of_every_column(column: Any) -> None:
    assert f"\n| `{column.name}` | {column.kind.value} |" in PAGE
