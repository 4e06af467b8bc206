"""Packed rows against padded ones and against each row alone; who is never packed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhimoeConfig,
)

from pipeline.learner.module import load_student
from pipeline.models.own.packing import EVEN, PACKED, pack_rows, packed_rows
from schemas.config.train import TrainSection
from schemas.errors import ConfigError
from tests.support.kinds import STRANGE, make_kind

LENGTHS = np.array([9, 2, 14, 13, 1, 6])
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
SETTINGS = TrainSection(learning_rate=1.0, sequences_per_step=1, packing="on")
SIZES: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"},
}


def small(config: Any = LlamaConfig, **settings: Any) -> Any:
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM
    return made.from_config(config(**SIZES, **settings))


def eager(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


def ids_and_mask() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    mask_BT = torch.arange(int(LENGTHS.max()))[None] < torch.from_numpy(LENGTHS)[:, None]
    return torch.randint(1, 64, mask_BT.shape, generator=random) * mask_BT, mask_BT


def learned(model: Any, states_NH: Tensor) -> list[Tensor]:
    """Return states, and the gradients of a loss that tells tokens apart."""
    model.zero_grad()
    factors = torch.linspace(-1.0, 1.0, states_NH.numel()).reshape(states_NH.shape)
    torch.autograd.backward((states_NH * factors).sum())
    return [states_NH.detach(), *(p.grad.clone() for p in model.model.parameters())]


@pytest.mark.parametrize("recomputed", [False, True])
def test_packed_and_padded_rows_have_the_same_states_and_gradients(recomputed: bool) -> None:
    model = small().double()
    assert isinstance(model, LlamaForCausalLM)
    assert pack_rows(model) is None and model.config._attn_implementation == PACKED
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    ids_BT, mask_BT = ids_and_mask()
    padded = model.model(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False)
    expected = learned(model, padded.last_hidden_state[mask_BT])
    layout = packed_rows(LENGTHS)
    packed = model.model(input_ids=ids_BT[mask_BT][None], use_cache=False, **layout.inputs)
    for mine, other in zip(learned(model, packed.last_hidden_state[0]), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.0, atol=1e-12)


def test_padded_rows_keep_their_numbers_to_the_last_bit() -> None:
    model, (ids_BT, mask_BT) = small().eval(), ids_and_mask()
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "use_cache": False}
    before = model(**inputs).logits[mask_BT]
    assert pack_rows(model) is None
    assert torch.equal(model(**inputs).logits[mask_BT], before)


def test_dropout_that_learns_does_not_hide_that_a_model_can_be_packed() -> None:
    model = small(attention_dropout=0.5).train()
    assert pack_rows(model) is None
    assert all(module.training for module in model.modules())


def test_attention_reads_rows_of_similar_length_beside_each_other() -> None:
    layout = packed_rows(LENGTHS)
    starts = np.cumsum(LENGTHS) - LENGTHS
    seen = []
    sizes = [rows * longest for rows, longest in layout.shapes]
    for shape, tokens in zip(layout.shapes, torch.split(layout.token_G, sizes), strict=True):
        firsts = tokens.view(shape)[:, 0].tolist()
        lengths = [LENGTHS[np.flatnonzero(starts == first)[0]] for first in firsts]
        assert shape[1] == max(lengths) <= EVEN * min(lengths)
        seen += firsts
    assert sorted(seen) == starts.tolist()
    assert layout.token_G[layout.place_N].tolist() == list(range(int(LENGTHS.sum())))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: small(MistralConfig, sliding_window=4), "its attention has a window"),
        (lambda: small(PhimoeConfig, sliding_window=64), "its attention has a window"),
        (lambda: eager(small()), "eager"),
        (lambda: small(rope_parameters=DYNAMIC), "'dynamic' follows the longest row"),
    ],
    ids=["sliding", "window in the mask alone, longer than the probe", "eager", "scaled"],
)
def test_a_model_with_other_attention_is_padded(model: Any, why: str) -> None:
    made = model()
    before = made.config._attn_implementation
    assert why in str(pack_rows(made))
    assert made.config._attn_implementation == before


@pytest.mark.parametrize("kind", STRANGE)
def test_a_model_that_keeps_something_else_between_tokens_is_padded(
    tmp_path: Path, kind: str
) -> None:
    made: Any = AutoModelForCausalLM.from_pretrained(make_kind(tmp_path, kind).location)
    assert pack_rows(made) is not None
    assert made.config._attn_implementation != PACKED


def test_packing_that_is_wanted_and_cannot_be_is_refused(tmp_path: Path) -> None:
    source = make_kind(tmp_path, next(iter(STRANGE)))
    with pytest.raises(ConfigError, match=r"train\.packing = 'on', but rows of .* cannot be"):
        load_student(
            source, TrainSection(learning_rate=1.0, sequences_per_step=1, packing="on"), "cpu"
        )
