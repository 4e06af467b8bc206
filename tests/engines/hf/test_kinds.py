"""Models that keep something else between tokens than attention does, against a plain forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines.engine import Engine, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start, Use
from pipeline.models.source import ModelSource
from schemas.columns import Floats, Ids
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.scoresignal import Signal
from tests.support.kinds import BASE, STRANGE, make_kind

CLOSE = 1e-4
"""Nats; 1e-3 is what opd promises, and mistakes of this kind are above 0.1."""
SCALED = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {**SCALED, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
}
DYNAMIC = {
    "max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
}


def prompts_of(lengths: tuple[int, ...]) -> list[Ids]:
    random = np.random.default_rng(0)
    return [random.integers(3, BASE["vocab_size"], n).astype(np.int32) for n in lengths]


def opened(source: ModelSource, use: Use = "score", max_tokens: int | None = None) -> Engine:
    section = EngineSection(device="cpu", batch_tokens=4096, logit_chunk_mb=0.01)
    return open_engine(
        Start(source, section, dtype="float32", use=use, max_tokens=max_tokens), print
    )


def plain(source: ModelSource, prompts: list[Ids], responses: list[Ids]) -> Floats:
    """Return log-probabilities of responses: each row alone, without padding and cache."""
    model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32)
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.inference_mode():
            logits_TV = model(input_ids=ids[None], use_cache=False).logits[0].float()
        logprobs_TV = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(logprobs_TV.gather(-1, ids[len(prompt) :, None])[:, 0].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("kind", STRANGE)
def test_draws_and_scores_are_those_of_a_plain_forward(tmp_path: Path, kind: str) -> None:
    source, prompts = make_kind(tmp_path, kind), prompts_of((3, 9, 14, 3, 5))
    engine = opened(source)
    sampling = Sampling(1.0, 1.0, 0, 8, stop_token_ids=tuple(range(3, 12)))
    samples = engine.generate(prompts, range(5), sampling)
    responses = [sample.ids for sample in samples]
    assert len({len(ids) for ids in responses}) > 1, "no row ends early: a weak test"
    expected = plain(source, prompts, responses)
    drawn = np.concatenate([sample.logprobs for sample in samples])
    np.testing.assert_allclose(drawn, expected, atol=CLOSE)
    scores = engine.score(prompts, responses, signal=Signal(1), vocab_size=engine.vocab_size)
    np.testing.assert_allclose(scores.token_logprob, expected, atol=CLOSE)
    alone = engine.generate(prompts[:1], [0], sampling)[0]
    np.testing.assert_array_equal(alone.ids, responses[0])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Rwkv", {"attention_hidden_size": 32, "context_length": 64}),
        (
            "MiniMax",
            {
                **{"num_local_experts": 2, "head_dim": 8, "block_size": 16},
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
        (
            "RecurrentGemma",
            {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "head_dim": 8},
        ),
    ],
)
def test_a_model_whose_state_is_its_own_scores_and_does_not_sample(
    tmp_path: Path, kind: str, settings: dict[str, object]
) -> None:
    source, prompts = make_kind(tmp_path, kind, **settings), prompts_of((3, 6))
    engine, responses = opened(source), prompts_of((4, 5))
    scores = engine.score(prompts, responses, signal=Signal(1), vocab_size=engine.vocab_size)
    expected = plain(source, prompts, responses)
    np.testing.assert_allclose(scores.token_logprob, expected, atol=CLOSE)
    with pytest.raises(ConfigError, match="cannot sample on engine 'hf'"):
        engine.generate(prompts, range(2), Sampling(1.0, 1.0, 0, 4, ()))


def test_rows_on_two_sides_of_a_border_of_rotary_scaling_are_scored_apart(tmp_path: Path) -> None:
    source, responses = make_kind(tmp_path, "Phi3", **LONGROPE), prompts_of((4, 4, 4, 4))
    prompts = prompts_of((3, 12, 13, 20))
    engine = opened(source, max_tokens=40)
    scores = engine.score(prompts, responses, signal=Signal(1), vocab_size=engine.vocab_size)
    expected = plain(source, prompts, responses)
    np.testing.assert_allclose(scores.token_logprob, expected, atol=CLOSE)


def test_rows_up_to_a_border_of_rotary_scaling_are_sampled(tmp_path: Path) -> None:
    source, prompts = make_kind(tmp_path, "Phi3", **LONGROPE), prompts_of((3, 12))
    engine = opened(source, "sample", max_tokens=16)
    samples = engine.generate(prompts, range(2), Sampling(1.0, 1.0, 0, 4, ()))
    expected = plain(source, prompts, [sample.ids for sample in samples])
    drawn = np.concatenate([sample.logprobs for sample in samples])
    np.testing.assert_allclose(drawn, expected, atol=CLOSE)
    with pytest.raises(ConfigError, match="'longrope'.* beyond 16 tokens"):
        engine.generate(prompts, range(2), Sampling(1.0, 1.0, 0, 5, ()))


@pytest.mark.parametrize(
    ("kind", "settings", "use"),
    [("Phi3", LONGROPE, "sample"), ("Llama", DYNAMIC, "sample"), ("Llama", DYNAMIC, "score")],
)
def test_sequences_that_may_cross_a_border_of_rotary_scaling_are_refused_at_the_start(
    tmp_path: Path, kind: str, settings: dict[str, object], use: Use
) -> None:
    source = make_kind(tmp_path, kind, **settings)
    opened(source, use, max_tokens=16).close()
    with pytest.raises(ConfigError, match="beyond 16 tokens: .* may have 17 tokens"):
        opened(source, use, max_tokens=17)
