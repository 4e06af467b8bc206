"""vLLM engines on tiny models, closed at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.engines.opening import open_engine
from pipeline.engines.start import Note, Start, Use
from pipeline.engines.vllm.engine import VllmEngine
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from tests.support.golden import Tiny, V

ATOL = 1e-4
"""Largest difference from float64, nats; 1e-3 is what opd promises."""


@contextmanager
def opened(
    model: Tiny,
    use: Use = "sample",
    *,
    max_tokens: int = 60,
    note: Note = print,
    reads_text: bool = False,
    **settings: Any,
) -> Iterator[VllmEngine]:
    start = Start(
        model.source,
        EngineSection(engine="vllm", **settings),
        dtype="float32",
        use=use,
        max_tokens=max_tokens,
        reads_text=reads_text,
    )
    engine = open_vllm(start, note)
    try:
        yield engine
    finally:
        engine.close()


def open_vllm(start: Start, note: Note = print) -> VllmEngine:
    """Return an engine, which is the caller's to close."""
    engine = open_engine(start, note)
    assert isinstance(engine, VllmEngine)
    return engine


def long_rows(count: int, prompt: int, response: int) -> tuple[list[Ids], list[Ids]]:
    random = np.random.default_rng(3)
    return tuple(  # type: ignore[return-value]  # two lists
        [random.integers(3, V, n).astype(np.int32) for _ in range(count)]
        for n in (prompt, response)
    )
