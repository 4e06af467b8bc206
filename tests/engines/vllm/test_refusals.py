"""What vLLM says of a model that it cannot run is told without noise, and what to do with it."""

import pytest

from pipeline.engines.vllm.refusals import cannot_run

REASONS = {
    "1 validation error for ModelConfig Value error, Model architectures ['X'] are not supported "
    "for now. Supported architectures: dict_keys(['A', 'B'])": "['X'] are not supported for now",
    "1 validation error for ModelConfig Value error, X was supported once. "
    "[type=value_error, input_value=ArgsKwargs((), {})] For further": "X was supported once",
    "KeyError: 'layers.1.mlp.gate.bias'": "KeyError: 'layers.1.mlp.gate.bias'",
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_refusal_names_the_cause_and_the_engine_to_use(reason: str) -> None:
    words = cannot_run("models/x", reason)
    assert f"{REASONS[reason]}. This release of vLLM" in words and "engine to 'hf'" in words
    assert not any(noise in words for noise in ("validation error", "dict_keys", "type=value"))
