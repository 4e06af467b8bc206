"""How far two measurements of one model may be apart, in nats: each limit with its reason. Pure.

In float32 the largest difference counts. In 16 bits rounding moves the tokens of a sharp model by
0.02 to 0.06 nats on average and a single one by 0.9, whichever engine computes it: there the mean
counts.
"""

EXACT = 1e-3
"""In float32. vLLM and transformers agree to 1e-5 on a flat model and to 1.5e-4 on a sharp one;
an old head that a reload left in its place was up to 10 nats away."""

ROUNDED_MEAN = 0.1
"""Mean in 16 bits: above all that rounding was seen to make."""

RELOAD_FLOOR = 0.01
"""Mean in 16 bits below which nothing is suspected after a reload: an engine that happened to round
little when it was new may round so much."""

RELOAD_FACTOR = 2.0
"""How often its own mean, when it was new, an engine may show after a reload in 16 bits: its
rounding is much alike for all weights, so that old parts of a model stand out."""

SERVERS_EXACT, SERVERS_ROUNDED = 1e-2, 0.5
"""Largest difference between servers on one short sequence, in float32 and in 16 bits. Devices and
batches may differ; this finds other weights, not a fine difference."""


def noise_limit(dtype: str) -> float:
    """Return the largest mean difference of an engine to itself, in another order or batch.

    `score.noise_tolerance` takes its place where it is set.
    """
    return EXACT if dtype == "float32" else ROUNDED_MEAN


def reload_limit(own_mean: float) -> float:
    """Return the largest mean difference to its checkpoint that an engine in 16 bits may have.

    Args:
        own_mean: what the same engine showed when it was new.
    """
    return min(ROUNDED_MEAN, max(RELOAD_FACTOR * own_mean, RELOAD_FLOOR))


def servers_limit(dtype: str) -> float:
    """Return the largest difference that two servers of one model may have."""
    return SERVERS_EXACT if dtype == "float32" else SERVERS_ROUNDED


FIRST_STEP_EXACT, FIRST_STEP_ROUNDED = 1e-6, 0.05
"""KL per token of a rollout to the learner before its first update, in float32 and in 16 bits. Seen
were 1e-10 and some 1e-3; dropout in a model's own settings makes 0.07 to 0.5."""


def first_step_limit(*, exact: bool) -> float:
    """Return the largest KL of a rollout to the learner with the same weights.

    Args:
        exact: whether both are float32. `train.max_rollout_kl` takes its place where it is set.
    """
    return FIRST_STEP_EXACT if exact else FIRST_STEP_ROUNDED


def export_limit(*, exact: bool, configured: float) -> float:
    """Return the largest difference of an exported checkpoint to its learner; the mean in 16 bits.

    Args:
        exact: whether learner and checkpoint are float32.
        configured: `train.verify_tolerance`, which counts there.
    """
    return configured if exact else ROUNDED_MEAN


def merge_limit(*, exact: bool) -> float:
    """Return the largest difference of a merged adapter to the unmerged one; the mean in 16 bits.

    Args:
        exact: whether the model is float32.
    """
    return EXACT if exact else ROUNDED_MEAN
