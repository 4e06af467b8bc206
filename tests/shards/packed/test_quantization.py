"""Levels of log-probabilities."""

import numpy as np

from pipeline.shards.packed.quantization import COARSE, FINE, levels, values


def test_levels_grow_as_log_probabilities_fall_and_are_their_own_nearest() -> None:
    for drop in (FINE, COARSE):
        found = np.arange(4096, dtype=np.int32)
        logprobs = values(found, drop=drop)
        assert (np.diff(logprobs) < 0).all()
        assert levels(logprobs, drop=drop).tolist() == found.tolist()
    assert levels(np.array([1e-3, 0.0], np.float32), drop=FINE).tolist() == [0, 0]
