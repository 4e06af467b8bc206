"""Adapters in vLLM: applied or merged, they are the adapted model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.scoresignal import Signal
from tests.support.golden import (
    PLAIN,
    Tiny,
    V,
    adapted,
    assert_same_scores,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.vllmgolden import ATOL, opened


@pytest.mark.parametrize(
    ("kind", "reason"),
    [({"arch": "qwen3"}, None), ({"arch": "stablelm", "hidden": 128}, "takes none")],
    ids=["applied", "merged"],
)
def test_an_adapter_gives_scores_and_samples_of_the_adapted_model(
    make: Callable[..., Tiny], tmp_path: Path, kind: dict[str, Any], reason: str | None
) -> None:
    base, (prompts, responses), notes = make(**kind), rows(20), list[str]()
    model, candidates = adapted(base, tmp_path / "adapter"), Signal(4, candidates=1)
    ids = [response[:, None] for response in responses]
    with opened(model, "score", batch_tokens=64, note=notes.append) as engine:
        own = engine._host._llm.llm_engine.vllm_config.lora_config
        assert (own is None) == (reason is not None) == any(str(reason) in n for n in notes)
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
        tested = engine.score(prompts, responses, signal=candidates, vocab_size=V, candidates=ids)
        samples = generate(engine, prompts, PLAIN, range(20))
        scratch = Path(engine._host._llm.model_config.model)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected, atol=ATOL)
    assert tested.candidate_logprobs is not None
    np.testing.assert_allclose(tested.candidate_logprobs[:, 0], expected.token_logprob, atol=ATOL)
    plain = reference_scores(base, prompts, responses, k=4, vocab_size=V)
    assert np.abs(plain.token_logprob - expected.token_logprob).max() > 0.1, "a weak adapter"
    for prompt, sample in zip(prompts, samples, strict=True):
        logprobs = reference_logprobs(model.logits(prompt, sample.ids), PLAIN)
        own_logprobs = logprobs[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own_logprobs, atol=ATOL)
    assert scratch.exists() == (scratch == base.folder)  # a merged copy is gone
