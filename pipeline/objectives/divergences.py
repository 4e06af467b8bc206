"""f-divergences of a teacher P and a student Q as data: their terms, and what pulls each Q. Pure.

A divergence is a sum of terms h(p, q) = p·f(q/p) over categories. h is homogeneous: a term of
weighted masses is the weighted term, so a sample's weights go into the masses' logarithms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.config.loss import LossConfig

Term = Callable[[Tensor, Tensor, LossConfig], Tensor]
"""From log p and log q, finite and of any one shape."""


@dataclass(frozen=True)
class Divergence:
    """A divergence by the name of `loss.kind`."""

    term: Term
    """h(p, q), through which autograd sees log q."""
    pull: Term
    """q · ∂h/∂q, what the gradient of the term with respect to log q is."""
    floors: bool = True
    """Whether log p is floored: whether a p of 0 would cost without bound, or give NaN."""
    known: Callable[[LossConfig], float] = lambda _: 0.0
    """What a term has of q itself, as a factor: its sum is known, and no sample need tell it."""


def _forward(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return log_p.exp() * (log_p - log_q)


def _forward_pull(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return -log_p.exp()


def _reverse(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return log_q.exp() * (log_q - log_p)


def _reverse_pull(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return log_q.exp() * (log_q - log_p + 1.0)


def _mixed(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    """Return the log of the mixture of both sides."""
    return torch.logaddexp(log_q + math.log1p(-share_of_p), log_p + math.log(share_of_p))


def _jsd(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Return the term of the generalised Jensen-Shannon divergence, arXiv 2306.13649."""
    if loss.beta in (0.0, 1.0):
        return (_reverse if loss.beta else _forward)(log_p, log_q, loss)
    log_m = _mixed(log_p, log_q, loss.beta)
    of_p, of_q = _forward(log_p, log_m, loss), _forward(log_q, log_m, loss)
    return _scale(loss) * (loss.beta * of_p + (1.0 - loss.beta) * of_q)


def _jsd_pull(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    if loss.beta in (0.0, 1.0):
        return (_reverse_pull if loss.beta else _forward_pull)(log_p, log_q, loss)
    log_m = _mixed(log_p, log_q, loss.beta)
    return _scale(loss) * (1.0 - loss.beta) * log_q.exp() * (log_q - log_m)


def _scale(loss: LossConfig) -> float:
    return 1.0 / (loss.beta * (1.0 - loss.beta)) if loss.normalized else 1.0


def _skew(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Return the term of KL(p ‖ s·p + (1 − s)·q), arXiv 2402.03898."""
    return _forward(log_p, _mixed(log_p, log_q, loss.skew), loss)


def _skew_pull(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    log_m = _mixed(log_p, log_q, loss.skew)
    return -(1.0 - loss.skew) * (log_p + log_q - log_m).exp()


def _skew_reverse(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Return the term of KL(q ‖ s·q + (1 − s)·p), arXiv 2402.03898."""
    return _forward(log_q, _mixed(log_p, log_q, 1.0 - loss.skew), loss)


def _skew_reverse_pull(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    log_m = _mixed(log_p, log_q, 1.0 - loss.skew)
    own = loss.skew * (log_q - log_m).exp()  # of the mixture, what is q's own
    return log_q.exp() * (log_q - log_m + 1.0 - own)


def _tvd(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return 0.5 * (log_p.exp() - log_q.exp()).abs()


def _tvd_pull(log_p: Tensor, log_q: Tensor, _: LossConfig) -> Tensor:
    return 0.5 * log_q.exp() * torch.sign(log_q - log_p)


def _alpha(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    a = loss.alpha
    both = a * log_p.exp() + (1.0 - a) * log_q.exp() - (a * log_p + (1.0 - a) * log_q).exp()
    return both / (a * (1.0 - a))


def _alpha_pull(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    a = loss.alpha
    return (log_q.exp() - (a * log_p + (1.0 - a) * log_q).exp()) / a


_JSD = Divergence(_jsd, _jsd_pull)

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(_forward, _forward_pull, floors=False),
    "reverse_kl": Divergence(_reverse, _reverse_pull),
    "jsd": _JSD,
    "gkd": _JSD,
    "skew_kl": Divergence(_skew, _skew_pull),
    "skew_reverse_kl": Divergence(_skew_reverse, _skew_reverse_pull),
    "tvd": Divergence(_tvd, _tvd_pull, floors=False),
    "alpha": Divergence(_alpha, _alpha_pull, known=lambda loss: 1.0 / loss.alpha),
}
"""The divergences by `loss.kind`."""
