"""Experts are held against what a model's own class says, once for models of one kind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.loading import load_model
from pipeline.models.own import attention, experts, reading
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from schemas.errors import CapacityError, ConfigError
from tests.support.kinds import make_kind

SIZES = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """Return a mixture of experts, in a process that has compared none."""
    monkeypatch.setattr(experts, "_AGREED", set())
    return make_kind(tmp_path, "Qwen3Moe", **SIZES)


def opened(source: ModelSource, dtype: str = "float32") -> None:
    section = EngineSection(device="cpu")
    open_engine(Start(source, section, dtype=dtype, use="score", max_tokens=60), print).close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by", [1.0, 0.0])
def test_experts_that_are_computed_otherwise_are_refused_in_words(
    by: float, dtype: str, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    plain: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]

    def more(*args: Any, **given: Any) -> Any:
        return plain(*args, **given) * (1.0 + by)

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "grouped_mm", more)
    if by == 0.0:
        opened(source, dtype)
        return
    with pytest.raises(ConfigError, match="experts 'grouped_mm' and 'eager' are .* apart"):
        opened(source, dtype)


def test_a_comparison_leaves_the_experts_and_is_made_once(source: ModelSource) -> None:
    model: Any = load_model(source, dtype="float32", device="cpu")
    ways: list[str] = []
    model.model.layers[0].register_forward_hook(
        lambda *_: ways.append(model.config._experts_implementation)
    )
    experts.require_same_experts(model, source)
    experts.require_same_experts(model, source)
    assert ways == ["grouped_mm", "eager"] and model.config._experts_implementation == "grouped_mm"


def test_a_model_without_experts_is_not_read(tmp_path: Path) -> None:
    source = make_kind(tmp_path, "Qwen3")
    model: Any = load_model(source, dtype="float32", device="cpu")
    model.model.layers[0].register_forward_hook(lambda *_: pytest.fail("it was read"))
    experts.require_same_experts(model, source)


def test_experts_that_fit_no_memory_are_no_bug(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(experts, "row_logprobs", full)
    with pytest.raises(CapacityError, match="does not fit the memory"):
        opened(source)
    monkeypatch.setattr(attention, "_AGREED", set())
    plain, asked = reading.row_logprobs, list[int]()

    def second(*given: Any) -> Any:
        asked.append(1)
        return plain(*given) if len(asked) == 1 else full()

    monkeypatch.setattr(attention, "row_logprobs", second)
    with pytest.raises(CapacityError, match="does not fit the memory"):
        opened(source)
