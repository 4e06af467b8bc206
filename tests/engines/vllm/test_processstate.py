"""What vLLM changes in the process that calls it is put back."""

import os
import random
import sys
from collections.abc import Callable

import numpy as np
import torch

from tests.support.golden import PLAIN, Tiny, generate, rows
from tests.support.vllmgolden import opened


def test_the_process_is_left_as_it_was_found(make: Callable[..., Tiny]) -> None:
    model, group = make(), torch.distributed.is_initialized()
    before = dict(os.environ), torch.set_num_threads, torch.get_rng_state(), group
    others = random.getstate(), [str(part) for part in np.random.get_state()], sys.excepthook
    with opened(model) as engine:
        generate(engine, rows(2)[0], PLAIN, range(2))
    changed = {n for n in {*before[0], *os.environ} if before[0].get(n) != os.environ.get(n)}
    assert all(name.startswith("VLLM_") for name in changed)
    assert torch.set_num_threads is before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.distributed.is_initialized() == before[3]
    assert random.getstate() == others[0] and sys.excepthook is others[2]
    assert [str(part) for part in np.random.get_state()] == others[1]
