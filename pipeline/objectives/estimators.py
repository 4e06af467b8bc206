"""A divergence over all ids from the few that are known: categories, and a sample beside them.

Unbiased in value and gradient. Each id of a student's sample adds what its term exceeds the tangent
plane of its bucket's term by, over its chance; the planes of a bucket's ids add up to that term.
Each id of a teacher's sample adds its term over its chance, in the bucket's place. Pure.
Shapes: T tokens, C categories, B buckets, N sampled ids.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.divergences import Divergence
from pipeline.objectives.samples import Sample
from pipeline.objectives.sides import Sides
from pipeline.scores.buckets import bucket_of
from schemas.config.loss import LossConfig


def over_categories(sides: Sides, divergence: Divergence, loss: LossConfig) -> Tensor:
    """Return the divergence of support and buckets: a lower bound of that of all ids."""
    return _terms(sides, divergence, loss).sum(-1)


def estimated(sides: Sides, divergence: Divergence, loss: LossConfig) -> Tensor:
    """Return the divergence of all ids, estimated with the sample where there is one."""
    sample, terms_TC = sides.targets.sample, _terms(sides, divergence, loss)
    if sample is None:
        return terms_TC.sum(-1)
    excess_T = _excess(sides, sample, terms_TC, divergence, loss)
    if sample.of == "student":
        return terms_TC.sum(-1) + sample.share * excess_T
    # where a teacher draws, a bucket's slope along q would come in by q/p, which has heavy tails
    known_T = terms_TC[:, : sides.num_support].sum(-1)
    if divergence.known(loss):
        _, log_q_TC, exists_TC = sides.categories
        q_TB = log_q_TC.exp().masked_fill(~exists_TC, 0.0)[:, sides.num_support :]
        known_T = known_T + divergence.known(loss) * q_TB.sum(-1)
    return known_T + sample.share * excess_T


def cut_share(sides: Sides, loss: LossConfig) -> Tensor:
    """Return the share of a sample's ids whose importance weight was cut, 0 without a sample."""
    sample = sides.targets.sample
    if sample is None or sample.rollout_logprobs_TN is None:
        return torch.zeros_like(sides.log_z_T)
    there_TN = sample.log_weights_TN > -math.inf
    cut_TN = there_TN & (_log_cuts(sides, sample, loss) < 0)
    return cut_TN.sum(-1) / there_TN.sum(-1).clamp(min=1)


def _terms(sides: Sides, divergence: Divergence, loss: LossConfig) -> Tensor:
    """Return each category's term [T, C]; an absent one, or one without teacher mass, adds 0."""
    log_p_TC, log_q_TC, exists_TC = sides.categories
    if divergence.floors:
        log_p_TC = log_p_TC.clamp(min=loss.teacher_logprob_floor)
        there_TC = exists_TC
    else:
        there_TC = exists_TC & (log_p_TC > -math.inf)
    log_p_TC = log_p_TC.masked_fill(~there_TC, 0.0)
    log_q_TC = log_q_TC.masked_fill(~there_TC, 0.0)
    return divergence.term(log_p_TC, log_q_TC, loss).masked_fill(~there_TC, 0.0)


def _excess(
    sides: Sides, sample: Sample, terms_TC: Tensor, divergence: Divergence, loss: LossConfig
) -> Tensor:
    """Return Σ over the sample of (term − tangent plane of its bucket) / chance, [T].

    Of a teacher's sample it is Σ term / chance, without what is known of the sum: all that lies
    outside the support.
    """
    there_TN = sample.log_weights_TN > -math.inf
    weights_TN = sample.log_weights_TN.masked_fill(~there_TN, 0.0)
    if sample.rollout_logprobs_TN is not None:
        weights_TN = weights_TN + _log_cuts(sides, sample, loss)
    floor = loss.teacher_logprob_floor if divergence.floors else -math.inf
    log_p_TN = (sample.logprobs_TN.clamp(min=floor) + weights_TN).masked_fill(~there_TN, 0.0)
    log_q_TN = (sides.student_sample_logprobs_TN + weights_TN).masked_fill(~there_TN, 0.0)
    excess_TN = divergence.term(log_p_TN, log_q_TN, loss)
    if sample.of == "student":
        planes = _plane(sides, terms_TC, divergence, loss)
        excess_TN = excess_TN - planes.at(sample.ids_TN, log_p_TN, log_q_TN)
    elif divergence.known(loss):
        excess_TN = excess_TN - divergence.known(loss) * log_q_TN.exp()
    return excess_TN.masked_fill(~there_TN, 0.0).sum(-1)


def _log_cuts(sides: Sides, sample: Sample, loss: LossConfig) -> Tensor:
    """Return the log of the factor, at most 1, that keeps importance weights below their cap."""
    if sample.rollout_logprobs_TN is None:
        raise ValueError("a sample of the teacher has no importance weights")
    log_ratio_TN = sides.student_sample_logprobs_TN.detach() - sample.rollout_logprobs_TN
    return (math.log(loss.importance_cap) - log_ratio_TN).clamp(max=0.0)


class _Planes(NamedTuple):
    """The tangent planes of the buckets' terms: constants, h_p·P and h_q·Q beside P and Q."""

    log_p_TB: Tensor
    log_q_TB: Tensor
    of_p_TB: Tensor
    of_q_TB: Tensor

    def at(self, ids_TN: Tensor, log_p_TN: Tensor, log_q_TN: Tensor) -> Tensor:
        """Return the height over each id's masses, of the plane of its bucket."""
        bucket_TN = bucket_of(ids_TN, self.of_p_TB.shape[1])
        log_p_of, log_q_of, p_of, q_of = (column.gather(1, bucket_TN) for column in self)
        return p_of * (log_p_TN - log_p_of).exp() + q_of * (log_q_TN - log_q_of).exp()


def _plane(sides: Sides, terms_TC: Tensor, divergence: Divergence, loss: LossConfig) -> _Planes:
    """Return the planes; by Euler's rule for homogeneous terms, h = h_p·P + h_q·Q."""
    log_p_TB, log_q_TB, exists_TB = (x[:, sides.num_support :].detach() for x in sides.categories)
    if divergence.floors:
        log_p_TB = log_p_TB.clamp(min=loss.teacher_logprob_floor)
    there_TB = exists_TB & (log_p_TB > -math.inf)
    log_p_TB = log_p_TB.masked_fill(~there_TB, 0.0)
    log_q_TB = log_q_TB.masked_fill(~there_TB, 0.0)
    of_q_TB = divergence.pull(log_p_TB, log_q_TB, loss).masked_fill(~there_TB, 0.0)
    terms_TB = terms_TC[:, sides.num_support :].detach()
    return _Planes(log_p_TB, log_q_TB, terms_TB - of_q_TB, of_q_TB)
