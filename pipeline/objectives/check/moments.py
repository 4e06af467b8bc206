"""Mean and noise of a step's gradient, from the gradients of single positions. Pure.

A position's gradient is that of a linear layer before the head: the outer product of the loss's
gradient and the hidden state. Squares of means are sums over pairs of two positions, so that noise
does not count as mean. Shapes: T positions, H hidden.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of an estimator at some positions, two at least."""

    gradient_TH: Tensor
    """Of the loss of each position by its hidden state, float64."""
    hidden_TH: Tensor
    """float64."""

    def minus(self, other: "Gradients") -> "Gradients":
        """Return how far they are from another estimator's at the same positions."""
        return Gradients(self.gradient_TH - other.gradient_TH, self.hidden_TH)

    def variance(self) -> float:
        """Return the variance over positions, summed over all weights of the layer."""
        gram_TT, count = self._gram(self), len(self.gradient_TH)
        return max(0.0, float(gram_TT.trace() - gram_TT.sum() / count) / (count - 1))

    def product(self, other: "Gradients") -> float:
        """Return the inner product of the means of two estimators, without their noise."""
        gram_TT, count = self._gram(other), len(self.gradient_TH)
        return float(gram_TT.sum() - gram_TT.trace()) / (count * (count - 1))

    def covariance(self, other: "Gradients") -> float:
        """Return the covariance over positions with another estimator's at the same ones."""
        gram_TT, count = self._gram(other), len(self.gradient_TH)
        return float(gram_TT.trace() - gram_TT.sum() / count) / (count - 1)

    def least(self) -> float:
        """Return the least square of a mean that is told from none: twice its standard error."""
        gram_TT, count = self._gram(self), len(self.gradient_TH)
        pairs = float(gram_TT.square().sum() - gram_TT.diagonal().square().sum())
        return 2.0 * math.sqrt(2.0 * max(0.0, pairs)) / (count * (count - 1))

    def _gram(self, other: "Gradients") -> Tensor:
        """Return the inner products of all pairs of two positions, [T, T]."""
        of_loss_TT = self.gradient_TH @ other.gradient_TH.T
        return of_loss_TT * (self.hidden_TH @ self.hidden_TH.T)


@dataclass(frozen=True)
class Worth:
    """What an estimator's gradient is worth beside a reference whose mean is right.

    None is what the positions do not tell, for noise hides the mean.
    """

    bias: float | None
    """Distance of the means, as a share of the reference's; 0 where it is not told from none."""
    bias_seen: float | None
    """Least bias that would have been told."""
    noise: float | None
    """N₀: positions whose sum has as much noise as mean."""
    aim: float | None
    """Cosine of the estimator's mean with the reference's."""
    variance: float
    """Of one position."""

    def cosine(self, tokens: float) -> float | None:
        """Return the cosine that is expected in a step of so many tokens.

        Its square is aim²/(1 + N₀/N).
        """
        if self.noise is None or self.aim is None:
            return None
        return self.aim / math.sqrt(1.0 + self.noise / tokens)


def step_cosine(found: Gradients, right: Gradients, tokens: float) -> float:
    """Return the expected cosine of two estimators' gradients, summed over the same tokens.

    What the positions themselves vary by is in both. Means count where the right one is told from
    none.

    Args:
        found: an estimator's.
        right: over all ids.
        tokens: of a step.
    """
    told = right.product(right) > right.least()

    def summed(a: Gradients, b: Gradients) -> float:
        mean = a.product(b) if told else 0.0
        return a.covariance(b) + tokens * mean

    sizes = max(summed(found, found), 0.0) * max(summed(right, right), 0.0)
    return 0.0 if not sizes else max(-1.0, min(1.0, summed(found, right) / math.sqrt(sizes)))


def worth(found: Gradients, reference: Gradients) -> Worth:
    """Return what an estimator is worth beside a reference at the same positions."""
    mean, right = found.product(found), reference.product(reference)
    variance = found.variance()
    if not mean > found.least() or not right > reference.least():
        return Worth(None, None, None, None, variance)
    apart = found.minus(reference)
    off, seen = apart.product(apart), apart.least()
    aim = 1.0 if off <= seen else found.product(reference) / math.sqrt(mean * right)
    return Worth(
        bias=math.sqrt(off / right) if off > seen else 0.0,
        bias_seen=math.sqrt(seen / right),
        noise=variance / mean,
        aim=max(-1.0, min(1.0, aim)),
        variance=variance,
    )
