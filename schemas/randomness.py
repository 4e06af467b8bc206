"""Randomness by name: seeds and uniform numbers are pure functions of what they are for."""

import numpy as np
from numpy.typing import NDArray

from schemas.fingerprint import canonical_json, sha256


def uniforms(seeds: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    """Return float64 [B, N] numbers in [0, 1): SplitMix64 of each row's seed and the step.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        step = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = seeds.astype(np.uint64)[:, None] + step[None, :]
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def derived_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order."""
    return int(sha256(canonical_json(list(parts)).encode())[:16], 16) >> 1
