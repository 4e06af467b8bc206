"""Ids drawn beside a support, and the chance of each: what makes sums over a few ids unbiased.

Pure. Shapes: T tokens, N ids of a sample.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from schemas.scoresignal import SampleOf

NOISE_TOKENS = 10_000.0
"""Trained tokens of a step at which the sampled token's correction counts half. The square of the
error is least where its noise is as large as the bias that it mends: at 530 tokens of a real model
with a student 0.7 nats away, 5,300 at 0.12 nats, and 14,000 to 33,000 of random ones. With this
number the error is smaller than that of the bucket alone up to 20,000."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Ids of a threshold sample at each of T positions, or the sampled token alone.

    Sums over all ids are expected of sums over these, each divided by the chance of its id.
    """

    of: SampleOf
    """Whose sample it is."""
    ids_TN: Tensor
    """int64; any id where `log_weights_TN` is -inf."""
    logprobs_TN: Tensor
    """float32 teacher log-probabilities."""
    log_weights_TN: Tensor
    """float32 −log of each id's chance to be in the sample; -inf where there is no id."""
    rollout_logprobs_TN: Tensor | None = None
    """float32 log-probabilities under the sampling policy, of the student's samples."""
    is_token: bool = False
    """Whether it is the sampled token alone."""
    share: float = 1.0
    """Factor of what the sample adds: below 1 where its noise outweighs the bias without it."""

    def in_step(self, tokens: int) -> "Sample":
        """Return the sample as a step of so many trained tokens takes it.

        What the sampled token alone adds shrinks in small steps, where its noise outweighs the bias
        that it mends.
        """
        share = tokens / (tokens + NOISE_TOKENS) if self.is_token else 1.0
        return replace(self, share=share)

    def without(self, bad_TN: Tensor) -> "Sample":
        """Return the sample without some of its ids."""
        mu_TN = self.rollout_logprobs_TN
        return replace(
            self,
            ids_TN=self.ids_TN.masked_fill(bad_TN, 0),
            logprobs_TN=self.logprobs_TN.masked_fill(bad_TN, 0.0),
            log_weights_TN=self.log_weights_TN.masked_fill(bad_TN, -math.inf),
            rollout_logprobs_TN=None if mu_TN is None else mu_TN.masked_fill(bad_TN, 0.0),
        )


def token_sample(token_ids_T: Tensor, token_logprob_T: Tensor, rollout_logprob_T: Tensor) -> Sample:
    """Return the sampled token as a sample: its chance is its probability when it was drawn.

    Args:
        token_ids_T: the sampled tokens.
        token_logprob_T: their log-probabilities under the teacher.
        rollout_logprob_T: under the policy that sampled them.
    """
    return Sample(
        of="student",
        ids_TN=token_ids_T[:, None].long(),
        logprobs_TN=token_logprob_T[:, None].float(),
        log_weights_TN=-rollout_logprob_T[:, None].float(),
        rollout_logprobs_TN=rollout_logprob_T[:, None].float(),
        is_token=True,
    )


def threshold_sample(
    of: SampleOf,
    ids_TN: Tensor,
    logprobs_TN: Tensor,
    chances_TN: Tensor,
    *,
    rollout_logprobs_TN: Tensor | None = None,
) -> Sample:
    """Return a stored threshold sample; an id of chance 0 is padding.

    Args:
        of: whose distribution it was drawn from.
        ids_TN: the ids.
        logprobs_TN: their log-probabilities under the teacher.
        chances_TN: their inclusion probabilities, float64.
        rollout_logprobs_TN: under the policy that sampled, for a sample of the student.
    """
    sample = Sample(
        of=of,
        ids_TN=ids_TN.long(),
        logprobs_TN=logprobs_TN.float(),
        log_weights_TN=-chances_TN.log().float(),
        rollout_logprobs_TN=None if rollout_logprobs_TN is None else rollout_logprobs_TN.float(),
    )
    return sample.without((ids_TN < 0) | ~(chances_TN > 0))
