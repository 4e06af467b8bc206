"""The teacher's side of a batch, as the objective takes it: targets, and the sample beside them."""

from dataclasses import replace

import numpy as np
import torch

from pipeline.learner.feed.weights import token_factors
from pipeline.learner.sequences import Batch, Rows, SampleColumns
from pipeline.objectives.samples import Sample, threshold_sample, token_sample
from pipeline.objectives.targets import Targets, build_targets
from pipeline.objectives.tempering import with_temperature
from schemas.columns import Floats
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError


def batch_targets(
    batch: Batch, loss: LossConfig, vocab_size: int, *, by_row: bool = False
) -> Targets:
    """Return the teacher's side of a batch's response tokens, checked.

    Args:
        batch: the sequences.
        loss: the objective.
        vocab_size: ids that the student's head knows.
        by_row: whether figures of whole responses are asked for.

    Raises:
        DataError: as `build_targets`.
        ConfigError: the objective wants a sample, or a temperature, that the rows do not have.
    """
    teacher, sample = batch.teacher, _sample(batch, loss)
    targets = build_targets(
        torch.from_numpy(teacher.topk_ids_TK),
        torch.from_numpy(teacher.topk_logprobs_TK),
        tail_T=torch.from_numpy(teacher.tail_T if sample is None else teacher.tail_TB),
        token_ids_T=torch.from_numpy(batch.token_ids_T),
        token_logprob_T=torch.from_numpy(teacher.token_logprob_T),
        weight_T=torch.from_numpy(batch.weight_T),
        rollout_logprob_T=torch.from_numpy(batch.rollout_logprob_T),
        advantage_T=_of_tokens(batch, batch.advantage_B),
        gate_T=_of_tokens(batch, batch.gate_B),
        sample=sample,
        vocab_size=vocab_size,
    )
    factor_T = token_factors(batch, loss.weights)
    rows = np.arange(len(batch.response_tokens_B))
    targets = replace(
        targets,
        row_T=_of_tokens(batch, rows),
        by_row=by_row,
        factor_T=None if factor_T is None else torch.from_numpy(factor_T),
    )
    if loss.temperature == 1.0:
        return targets
    log_z_T = None if teacher.log_z_T is None else torch.from_numpy(teacher.log_z_T)
    return with_temperature(targets, loss.temperature, log_z_T, vocab_size=vocab_size)


def _of_tokens(batch: Batch, values_B: Floats | Rows | None) -> torch.Tensor | None:
    """Return what each token's response has."""
    if values_B is None:
        return None
    return torch.from_numpy(np.repeat(values_B, batch.response_tokens_B))


def _sample(batch: Batch, loss: LossConfig) -> Sample | None:
    """Return the best sample that the rows hold: a stored one, else the sampled token."""
    stored = batch.teacher.sample
    if stored is not None and stored.of in loss.samples:
        return _stored(stored)
    if loss.takes_token:
        return token_sample(
            torch.from_numpy(batch.token_ids_T),
            torch.from_numpy(batch.teacher.token_logprob_T),
            torch.from_numpy(batch.rollout_logprob_T),
        )
    if loss.estimator == "sampled" and (batch.weight_T > 0).any():
        raise ConfigError(
            f"loss.estimator = 'sampled' with {loss.kind} needs a sample of the teacher, and the "
            "scores hold none: set score.sample, or leave loss.estimator out"
        )
    return None


def _stored(columns: SampleColumns) -> Sample:
    mu_TN = columns.rollout_logprobs_TN
    return threshold_sample(
        columns.of,
        torch.from_numpy(columns.ids_TN),
        torch.from_numpy(columns.logprobs_TN),
        torch.from_numpy(columns.chances_TN),
        rollout_logprobs_TN=None if mu_TN is None else torch.from_numpy(mu_TN),
    )
