"""Quantised teachers on vLLM: within 16 bits of their dequantised weights, or refused in words."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.start import Start
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.scoresignal import Signal
from tests.engines.hf.test_quantised import plainly, tiny
from tests.support.golden import Tiny, V, reference_scores, rows
from tests.support.quantised import quantise
from tests.support.vllmgolden import open_vllm

ROUNDED = 0.1
"""Nats in 16 bits, on average."""


def start_of(model: Tiny, dtype: str) -> Start:
    section = EngineSection(engine="vllm")
    return Start(model.source, section, dtype=dtype, use="score", max_tokens=60)


@pytest.mark.parametrize(
    ("dtype", "why"), [("float32", "not implemented for 'Float'"), ("bfloat16", None)]
)
def test_four_bits_are_scored_as_they_stand_or_refused_before_anything_is_scored(
    dtype: str, why: str | None, tmp_path: Path
) -> None:
    packed, plain = quantise(tiny(tmp_path / "model"), tmp_path, "int4")
    model, (prompts, responses) = Tiny(packed, plainly(plain)), rows(3)
    if why is not None:
        with pytest.raises(ConfigError, match=why):
            open_vllm(start_of(model, dtype))
        return
    with closing(open_vllm(start_of(model, dtype))) as engine:
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert np.abs(found.token_logprob - expected.token_logprob).mean() < ROUNDED
