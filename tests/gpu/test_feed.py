"""What is made ahead on a GPU, in a stream of its own, is what the CPU makes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.learner.feed.device.lane import Lane, tensors_of
from pipeline.learner.feed.device.travel import travelled
from pipeline.learner.feed.targets import batch_targets
from pipeline.shards.packed.quantization import FINE, levels, values
from schemas.config.loss import LossConfig
from tests.learner.feed.device.test_travel import batch_of, of_packed, of_typed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def test_every_stored_logprob_arrives_bit_by_bit() -> None:
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    packed = values(levels(-np.geomspace(1e-6, 1e30, 1 << 15), drop=FINE), drop=FINE)
    for stored in (halves[np.isfinite(halves)], packed):
        tensor = torch.from_numpy(stored)
        there = travelled(tensor, "cuda:0").cpu()
        assert torch.equal(there.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize("stored", [of_packed, of_typed], ids=["packed", "typed"])
def test_targets_of_a_stream_are_those_of_the_cpu(stored: object) -> None:
    assert callable(stored)
    batch, loss = batch_of(300, stored), LossConfig(kind="forward_kl")
    lane = Lane("cuda:0")
    with ThreadPoolExecutor(1) as pool:
        made = [
            pool.submit(lane.make, lambda: batch_targets(batch, loss, 300, device="cuda:0"))
            for _ in range(8)
        ]
        found = [lane.claim(one.result()) for one in made]
    for targets in found:
        pairs = zip(tensors_of(targets), tensors_of(batch_targets(batch, loss, 300)), strict=True)
        for there, here in pairs:
            torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-6, equal_nan=True)
