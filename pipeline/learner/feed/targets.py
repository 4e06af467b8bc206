"""The teacher's side of a batch, as the objective takes it: targets, and the sample beside them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.learner.feed.device.travel import travelled
from pipeline.learner.feed.weights import token_factors
from pipeline.learner.sequences import Batch, SampleColumns
from pipeline.objectives.samples import Sample, threshold_sample, token_sample
from pipeline.objectives.targets import Targets, build_targets
from pipeline.objectives.tempering import with_temperature
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError

Send = Callable[[NDArray[Any]], Tensor]
"""Brings an array to the device."""


def batch_targets(
    batch: Batch, loss: LossConfig, vocab_size: int, *, by_row: bool = False, device: str = "cpu"
) -> Targets:
    """Return the teacher's side of a batch's response tokens, checked and made on a device.

    Args:
        batch: the sequences.
        loss: the objective.
        vocab_size: ids that the student's head knows.
        by_row: whether figures of whole responses are asked for.
        device: where it is made, of what the scores say alone.

    Raises:
        DataError: as `build_targets`.
        ConfigError: the objective wants a sample, or a temperature, that the rows do not have.
    """
    send = partial(_sent, device=device)
    teacher, sample = batch.teacher, _sample(batch, loss, send)
    counts_B = send(batch.response_tokens_B)

    def of_tokens(values_B: NDArray[Any] | None) -> Tensor | None:
        """Return what each token's response has."""
        if values_B is None:
            return None
        return send(values_B).repeat_interleave(counts_B, output_size=len(batch.token_ids_T))

    targets = build_targets(
        send(teacher.topk_ids_TK),
        send(teacher.topk_logprobs_TK),
        tail_T=send(teacher.tail_T if sample is None else teacher.tail_TB),
        token_ids_T=send(batch.token_ids_T),
        token_logprob_T=send(teacher.token_logprob_T),
        weight_T=send(batch.weight_T),
        rollout_logprob_T=send(batch.rollout_logprob_T),
        advantage_T=of_tokens(batch.advantage_B),
        gate_T=of_tokens(batch.gate_B),
        sample=sample,
        vocab_size=vocab_size,
    )
    factor_T = token_factors(batch, loss.weights)
    targets = replace(
        targets,
        row_T=of_tokens(np.arange(len(batch.response_tokens_B))),
        by_row=by_row,
        factor_T=None if factor_T is None else send(factor_T),
    )
    if loss.temperature == 1.0:
        return targets
    log_z_T = None if teacher.log_z_T is None else send(teacher.log_z_T)
    return with_temperature(targets, loss.temperature, log_z_T, vocab_size=vocab_size)


def _sent(values: NDArray[Any], device: str) -> Tensor:
    return travelled(torch.from_numpy(values), device)


def _sample(batch: Batch, loss: LossConfig, send: Send) -> Sample | None:
    """Return the best sample that the rows hold: a stored one, else the sampled token."""
    stored = batch.teacher.sample
    if stored is not None and stored.of in loss.samples:
        return _stored(stored, send)
    if loss.takes_token:
        return token_sample(
            send(batch.token_ids_T),
            send(batch.teacher.token_logprob_T),
            send(batch.rollout_logprob_T),
        )
    if loss.estimator == "sampled" and (batch.weight_T > 0).any():
        raise ConfigError(
            f"loss.estimator = 'sampled' with {loss.kind} needs a sample of the teacher, and the "
            "scores hold none: set score.sample, or leave loss.estimator out"
        )
    return None


def _stored(columns: SampleColumns, send: Send) -> Sample:
    mu_TN = columns.rollout_logprobs_TN
    return threshold_sample(
        columns.of,
        send(columns.ids_TN),
        send(columns.logprobs_TN),
        send(columns.chances_TN),
        rollout_logprobs_TN=None if mu_TN is None else send(mu_TN),
    )
