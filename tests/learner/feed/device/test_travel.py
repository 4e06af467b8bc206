"""What goes to a device: few bytes, and the same bits when it is there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.learner.feed.device.lane import Lane, tensors_of
from pipeline.learner.feed.device.travel import narrowed, travelled
from pipeline.learner.feed.layout import batch_inputs, packed_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.sequences import Batch, SampleColumns, TeacherColumns
from pipeline.shards.packed.quantization import COARSE, FINE, levels, values
from schemas.config.loss import LossConfig

THERE = "cpu:0"
"""A device to which things are sent, also where there is no GPU."""

TOKENS, PROMPT, K = 50, 8, 64
"""Tokens of each response and prompt; top-k."""


def logprobs(*shape: int, seed: int = 0) -> Any:
    """Return log-probabilities in falling order whose masses add up to nearly 1."""
    logits = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return -np.sort(-(logits - np.log(np.exp(logits).sum(-1, keepdims=True)) - 0.01), axis=-1)


def of_packed(x: Any) -> Any:
    return values(levels(x, drop=FINE), drop=FINE)


def of_typed(x: Any) -> Any:
    return x.astype(np.float16).astype(np.float32)


def bits(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()


WHOLE = np.array([[0, -1, 65534], [7, 32767, 32768]])
SOME = np.append(logprobs(1000), [-np.inf, 0.0]).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (WHOLE.astype(np.int32), 2),
        (WHOLE, 2),
        (WHOLE + 1, 4),
        (WHOLE - 1, 4),
        (WHOLE << 20, 8),
        (of_typed(SOME), 2),
        (of_packed(SOME), 2),
        (values(levels(SOME, drop=COARSE), drop=COARSE), 2),
        (np.array([1.0, 0.0, 0.5], np.float32), 2),
        (SOME, 4),
        (np.array([-0.0, -1e9, 1 / 3], np.float32), 4),
        (np.array([np.nan, 1 / 3], np.float32), 4),
        (np.array([True, False]), 1),
        (np.empty((0, 4), np.int64), 8),
        (np.empty((0, 4), np.float32), 2),
    ],
)
def test_values_arrive_bit_by_bit_in_16_bits_where_these_hold_them(given: Any, size: int) -> None:
    tensor = torch.from_numpy(given)
    packed, unpack = narrowed(tensor)
    assert packed.element_size() == size
    assert bits(unpack(packed)) == bits(tensor) == bits(travelled(tensor, THERE))


def batch_of(vocab: int, stored: Callable[[Any], Any]) -> Batch:
    """Return rows with all that an objective may ask for, as a codec stores them."""
    random, rows = np.random.default_rng(3), 4
    count = rows * TOKENS
    chosen = random.permuted(np.tile(np.arange(vocab, dtype=np.int32), (count, 1)), axis=1)
    ids_TK, others_TN = chosen[:, :K], chosen[:, K : K + 2]
    topk_TK = stored(logprobs(count, K))
    sample = SampleColumns("teacher", others_TN, stored(logprobs(count, 2) - 5), topk_TK[:, :2] * 0)
    teacher = TeacherColumns(
        ids_TK,
        topk_TK,
        stored(np.full((count, 1), np.log(0.01), np.float32)),
        logprobs(count),
        replace(sample, chances_TN=np.ones((count, 2), np.float32)),
        np.zeros(count, np.float32),
    )
    return Batch(
        prompt_ids_P=random.integers(0, vocab, rows * PROMPT, dtype=np.int32),
        prompt_tokens_B=np.full(rows, PROMPT),
        response_tokens_B=np.full(rows, TOKENS),
        token_ids_T=random.integers(0, vocab, count, dtype=np.int32),
        weight_T=np.ones(count, np.float32),
        rollout_logprob_T=logprobs(count, seed=4),
        ended_B=np.ones(rows, bool),
        teacher=teacher,
        advantage_B=np.array([0.1, -0.2, 0.3, np.nan], np.float32),
        gate_B=np.array([1.0, 0.3, 0.0, 1.0], np.float32),
    )


LOSSES = {
    "forward_kl": LossConfig(kind="forward_kl"),
    "sampled": LossConfig.model_validate({"kind": "forward_kl", "estimator": "sampled"}),
    "places": LossConfig.model_validate(
        {"kind": "reverse_kl", "weights": {"positions": [[0, 1.0], [40, 0.3]]}}
    ),
}


@pytest.mark.parametrize("stored", [of_packed, of_typed, np.asarray])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_targets_made_on_a_device_are_those_made_here(
    loss: LossConfig, stored: Callable[[Any], Any]
) -> None:
    batch = batch_of(300, stored)
    here, there = (batch_targets(batch, loss, 300, device=device) for device in ("cpu", THERE))
    assert list(map(bits, tensors_of(there))) == list(map(bits, tensors_of(here)))
    for inputs in (batch_inputs, packed_inputs):
        found = [list(map(bits, tensors_of(inputs(batch, device)))) for device in ("cpu", THERE)]
        assert found[0] == found[1]


class Sent(TorchFunctionMode):
    """Counts the bytes of tensors that are brought to a device."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run what is called, and count."""
        if func is Tensor.to and THERE in args:
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("vocab", "most"), [(300, 310), (70_000, 440)])
def test_a_token_of_64_kept_ids_takes_a_third_to_a_half_of_its_targets_on_its_way(
    vocab: int, most: int
) -> None:
    batch, loss = batch_of(vocab, of_packed), LossConfig(kind="forward_kl")
    batch = replace(batch, teacher=replace(batch.teacher, sample=None, log_z_T=None))
    batch = replace(batch, advantage_B=None, gate_B=None)
    with Sent() as sent:
        targets = batch_targets(batch, loss, vocab, device=THERE)
        packed_inputs(batch, THERE)
    tokens = len(batch.token_ids_T)
    made = sum(tensor.nbytes for tensor in tensors_of(targets)) / tokens
    assert made > 860
    assert 250 < sent.bytes / tokens < most


def test_a_device_without_streams_makes_things_at_once() -> None:
    lane, made = Lane("cpu"), (torch.ones(2), torch.zeros(1))
    assert lane.make(lambda: made) is made
    assert lane.claim(made) is made
