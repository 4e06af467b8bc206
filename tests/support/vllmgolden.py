"""vLLM engines on tiny models, closed at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.engines.vllm.engine import VllmEngine
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.config.score import ScoreSection
from tests.support.golden import Tiny, V

ATOL = 1e-4
"""Largest difference from float64, nats; 1e-3 is what opd promises."""


@contextmanager
def opened(
    model: Tiny,
    *,
    dtype: str = "float32",
    max_tokens: int = 60,
    note: Callable[[str], None] = print,
    reads_text: bool = False,
    **settings: Any,
) -> Iterator[VllmEngine]:
    kind = ScoreSection if "k" in settings else EngineSection
    section = kind(engine="vllm", **settings)
    engine = VllmEngine(
        model.source,
        dtype=dtype,
        settings=section,
        max_tokens=max_tokens,
        note=note,
        reads_text=reads_text,
    )
    try:
        yield engine
    finally:
        engine.close()


def long_rows(count: int, prompt: int, response: int) -> tuple[list[Ids], list[Ids]]:
    random = np.random.default_rng(3)
    return tuple(  # type: ignore[return-value]  # two lists
        [random.integers(3, V, n).astype(np.int32) for _ in range(count)]
        for n in (prompt, response)
    )
