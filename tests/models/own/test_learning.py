"""A student learns as it samples: two forwards in training are equal, whatever its config drops."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pipeline.models.border import settle_libraries
from pipeline.models.own.learning import (
    LearningMode,
    check_quiet,
    learning_mode,
    recompute_activations,
)
from schemas.errors import ConfigError

IDS = torch.arange(3, 15).reshape(2, 6)
HALF = 0.5

KINDS: dict[str, dict[str, object]] = {
    "GPT2LMHeadModel": {"attn_pdrop": HALF, "resid_pdrop": HALF, "embd_pdrop": HALF},
    "LlamaForCausalLM": {"attention_dropout": HALF},
    "OPTForCausalLM": {
        **{"dropout": HALF, "layerdrop": HALF, "ffn_dim": 32, "word_embed_proj_dim": 16},
        "attention_dropout": HALF,
    },
    "BloomForCausalLM": {"hidden_dropout": HALF, "attention_dropout": HALF},
    "MixtralForCausalLM": {"router_jitter_noise": HALF, "num_local_experts": 4},
    "PhimoeForCausalLM": {"router_jitter_noise": HALF, "num_local_experts": 4},
    "SeedOssForCausalLM": {"residual_dropout": HALF, "attention_dropout": HALF},
    "GPTNeoXForCausalLM": {"hidden_dropout": HALF, "attention_dropout": HALF},
    "XGLMForCausalLM": {
        **{"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2},
        **{"dropout": HALF, "layerdrop": HALF, "activation_dropout": HALF},
    },
}


def tiny(name: str) -> Any:
    settle_libraries()
    cls = getattr(transformers, name)
    settings: dict[str, object] = {
        **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32},
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    return cls(cls.config_class(**settings | KINDS.get(name, {}))).eval()


def hidden(model: Any) -> Tensor:
    found: Tensor = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    return found


def gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradients of some loss on the hidden state."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, 16)
    torch.autograd.backward((hidden(model) * weights).pow(2).sum())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", KINDS)
def test_two_forwards_in_training_are_what_samples(name: str) -> None:
    model = tiny(name)
    with torch.no_grad():
        expected = hidden(model)
        loud = LearningMode(model_dropout=True)
        loud.set(model, learns=True)
        assert not torch.equal(hidden(model), expected), "the test sees no noise"
    mode = learning_mode(model, IDS, model_dropout=False)
    check_quiet(model, mode, IDS)
    first, plain = hidden(model), gradients(model)
    assert torch.equal(first, expected) and torch.equal(hidden(model), first)
    assert len(plain) > 5

    recompute_activations(model, mode)
    check_quiet(model, mode, IDS)
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        assert torch.equal(hidden(model), expected)
    few, saved = saved, 0
    again = gradients(model)
    assert again.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, msg=key)
    mode.set(model, learns=False)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        assert torch.equal(hidden(model), expected)
    assert few < saved / 2, "activations were kept though they are to be recomputed"
    assert not any(module.training for module in model.modules())


class Own(nn.Module):
    """A model with code of its own: an expert that only training reaches, noise, or both."""

    def __init__(self, *, frozen: bool, noise: float) -> None:
        """Say whether evaluation keeps gradients, and how loud training is."""
        super().__init__()
        self.embedding, self.expert = nn.Embedding(32, 16), nn.Linear(16, 16)
        self.drop, self._frozen, self._noise = nn.Dropout(HALF), frozen, noise

    def get_decoder(self) -> "Own":
        """Return itself."""
        return self

    def get_output_embeddings(self) -> nn.Module:
        """Return what is no decoder."""
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        """Return what transformers would."""
        found = self.drop(self.embedding(input_ids))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns()):
            found = found + self.expert(found)
        found = found + self._noise * torch.rand_like(found) * self.training
        return type("Output", (), {"last_hidden_state": found})

    def _learns(self) -> bool:
        return self.training or not self._frozen


@pytest.mark.parametrize("frozen", [False, True])
def test_own_code_whose_evaluation_keeps_no_gradients_trains_all_the_same(frozen: bool) -> None:
    model = Own(frozen=frozen, noise=0.0)
    mode = learning_mode(model, IDS, model_dropout=False)
    assert mode.whole == frozen
    check_quiet(model, mode, IDS)
    torch.autograd.backward(hidden(model).sum())
    assert model.expert.weight.grad is not None
    assert torch.equal(hidden(model), hidden(model))


def test_noise_that_cannot_be_turned_off_is_refused() -> None:
    model = Own(frozen=True, noise=0.01)
    mode = learning_mode(model, IDS, model_dropout=False)
    with pytest.raises(ConfigError, match="train.model_dropout = true"):
        check_quiet(model, mode, IDS)
    check_quiet(model, learning_mode(model, IDS, model_dropout=True), IDS)
