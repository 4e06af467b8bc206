"""How far trials go: to the longest row that is allowed, or in words to where they do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines import reach
from pipeline.engines.hf import engine as hf
from pipeline.engines.opening import open_engine
from pipeline.engines.reach import reach_of
from pipeline.engines.start import Start
from pipeline.models.own import attention
from pipeline.models.source import ModelSource
from pipeline.scores.drift import gap_of
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.scoresignal import Signal
from tests.support.kinds import make_kind

FAR = 6000


def start_of(source: ModelSource, *, tokens: int | None, engine: Any = "hf") -> Start:
    section = EngineSection(engine=engine, device="cpu", batch_tokens=1 << 14)
    return Start(source, section, dtype="float32", use="score", max_tokens=tokens)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Return a small model whose windows are of 900 tokens, and that holds many more."""
    folder = tmp_path_factory.mktemp("windows")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "sliding_window": 900}
    return make_kind(folder, "Mistral", max_position_embeddings=FAR, **sizes)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let costs be those of one thread."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize(
    ("tokens", "tried", "compared"), [(60, 60, 60), (1200, 1200, 1200), (FAR, FAR, 908)]
)
def test_a_row_is_as_long_as_is_allowed_where_that_is_cheap(
    tokens: int, tried: int, compared: int, source: ModelSource
) -> None:
    found = reach_of(start_of(source, tokens=tokens))
    assert (found.allowed, found.tried, found.compared) == (tokens, tried, compared)
    assert found.borders == () and found.words() == ""
    other = reach_of(start_of(source, tokens=tokens, engine="vllm"))
    assert other.tried == min(tokens, FAR - 1)  # it scores what it may go on with


def test_what_is_dear_is_told_with_the_borders_that_lie_beyond(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "CPU_COST", 1e6)
    found = reach_of(start_of(source, tokens=3000))
    assert found.words() == (
        "rows above 40 tokens are not tried, and 3000 are allowed; nothing is read in two ways "
        "beyond 64 tokens, where config.json has sliding_window = 900"
    )
    assert found.figures() == {
        "tried_tokens": 40,
        "allowed_tokens": 3000,
        "compared_tokens": 64,
        "borders_beyond": {"sliding_window": 900},
    }
    assert found.with_rows([7, 320]).tried == 320
    assert reach_of(start_of(source, tokens=900)).borders == ()
    assert reach_of(start_of(source, tokens=None)).allowed is None


def test_a_near_border_is_crossed_whatever_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "CPU_COST", 0)
    near = make_kind(tmp_path, "Mistral", sliding_window=300, max_position_embeddings=FAR)
    start = start_of(near, tokens=3000)
    assert reach_of(start).compared == 308
    assert reach_of(replace(start, use="sample")).tried == 308
    assert reach_of(start_of(near, tokens=3000, engine="vllm")).borders == (
        (300, "sliding_window"),
    )


@pytest.mark.parametrize(("cheap", "refused"), [(5e9, True), (1e6, False)])
def test_attention_that_is_wrong_beyond_a_far_window_is_refused_or_told(
    cheap: float, refused: bool, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        """Compute attention without a window."""
        if query.shape[2] > 900:
            mask = torch.ones(query.shape[2], query.shape[2]).tril().bool()[None, None]
        return plain(module, query, key, value, mask, **given)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", blind)
    monkeypatch.setattr(attention, "_AGREED", set())
    monkeypatch.setattr(reach, "CPU_COST", cheap)
    start = start_of(source, tokens=1200)
    if refused:
        with pytest.raises(ConfigError, match="'sdpa' and 'eager' are .* apart"):
            open_engine(start, print)
        return
    open_engine(start, print).close()
    assert "sliding_window = 900" in reach_of(start).words()


def test_borders_of_rotary_scaling_far_away_are_decided_by_structure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "CPU_TOKENS", 1 << 14)  # so that both rows fit a batch
    border = 4096
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaled = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": border,
    }
    source = make_kind(
        tmp_path,
        "Phi3",
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=FAR,
        original_max_position_embeddings=border,
        rope_parameters={**scaled, **factors},
    )
    start = start_of(source, tokens=border + 20)
    with pytest.raises(ConfigError, match=f"'longrope'.* beyond {border} tokens.* may have 4116"):
        open_engine(replace(start, use="sample"), print)
    engine = open_engine(start, print)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 60, n).astype(np.int32) for n in (border - 40, border + 4)]
    responses = [random.integers(0, 60, 8).astype(np.int32) for _ in prompts]
    asked: Any = {"signal": Signal(1), "vocab_size": 60}
    together = engine.score(prompts, responses, **asked)
    alone = [engine.score([p], [r], **asked) for p, r in zip(prompts, responses, strict=True)]
    joined = np.concatenate([one.token_logprob for one in alone])
    assert gap_of(together.token_logprob, joined).max < 1e-5
    engine.close()
