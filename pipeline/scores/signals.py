"""What is kept of a teacher's distribution: top-k, tail, candidates, draws, samples, log Z. Pure.

Everything comes from full logits in float32; the caller bounds how many positions exist at once.
Shapes: T tokens, K top-k, V vocabulary, M tail buckets, N candidates, D random numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.scores.buckets import bucket_of
from pipeline.scores.threshold import threshold_sample
from schemas.randomness import derived_seed, uniforms
from schemas.scoresignal import Signal

BLOCK = 1 << 18
"""Logits that a CPU works on at once: they stay in its cache from one pass to the next."""

LOGIT_FOR_MINUS_INF = -1e30
"""Stands for a logit of -inf in products."""


def score_signals(
    logits_TV: Tensor,
    token_ids_T: Tensor,
    *,
    signal: Signal,
    vocab_size: int,
    candidates_TN: Tensor | None = None,
    uniforms_TD: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the stored signals of T positions, named as the arrays of `Scores`.

    Args:
        logits_TV: raw teacher logits; cast to float32 inside, overwritten where they are float32.
        token_ids_T: int64 ids that stand at these positions.
        signal: what is kept; its `k` is at most `vocab_size`.
        vocab_size: ids that may enter the top-k; the mass of ids above goes to the tail. Rank,
            entropy and draws are over all ids.
        candidates_TN: int64 ids whose log-probabilities are kept, where the signal has them; -1
            where a position has fewer.
        uniforms_TD: float64 numbers of `signal_uniforms`, where the signal needs some.
    """
    logits_TV, whole = logits_TV.float(), slice(None)
    rows = max(1, BLOCK // logits_TV.shape[1]) if logits_TV.device.type == "cpu" else 0
    blocks = [slice(at, at + rows) for at in range(0, len(logits_TV), rows)] if rows else [whole]
    parts = [
        _signals(
            logits_TV[block],
            token_ids_T[block],
            signal=signal,
            vocab_size=vocab_size,
            candidates_TN=None if candidates_TN is None else candidates_TN[block],
            uniforms_TD=None if uniforms_TD is None else uniforms_TD[block],
        )
        for block in blocks or [whole]
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _signals(
    logits_TV: Tensor,
    token_ids_T: Tensor,
    *,
    signal: Signal,
    vocab_size: int,
    candidates_TN: Tensor | None,
    uniforms_TD: Tensor | None,
) -> dict[str, Tensor]:
    top_TK, ids_TK = logits_TV[:, :vocab_size].topk(signal.k, dim=-1)
    token_T1 = logits_TV.gather(-1, token_ids_T[:, None])
    top_of_all_TK = top_TK if vocab_size >= logits_TV.shape[1] else top_TK[:, :0]
    rank_T = _ranks(logits_TV, token_T1, top_of_all_TK)
    highest_T1 = top_of_all_TK[:, :1] if top_of_all_TK.shape[1] else logits_TV.amax(-1, True)
    shifted_TV = logits_TV.sub_(highest_T1)
    weights_TV = shifted_TV.exp()  # probabilities up to a factor of each row
    sum_T1 = weights_TV.sum(-1, keepdim=True)
    log_sum_T1 = sum_T1.log()
    top_TK, kept_TK = _cut(top_TK - highest_T1 - log_sum_T1, signal)
    found = {
        "topk_ids": (ids_TK if kept_TK is None else ids_TK.masked_fill(~kept_TK, -1)).int(),
        "topk_logprobs": top_TK,
        "token_logprob": (token_T1 - highest_T1 - log_sum_T1)[:, 0],
        "token_rank": rank_T,
    }
    if candidates_TN is not None:
        found["candidate_ids"] = candidates_TN.to(torch.int32)
        logprobs_TN = shifted_TV.gather(-1, candidates_TN.clamp(min=0)) - log_sum_T1
        found["candidate_logprobs"] = logprobs_TN.masked_fill(candidates_TN < 0, -torch.inf)
    if signal.temperatures:
        found["log_normalisers"] = log_normalisers(shifted_TV, log_sum_T1, signal.temperatures)
    if uniforms_TD is not None and signal.draws:
        found["draw_ids"] = _drawn(weights_TV, uniforms_TD[:, : signal.draws])
    moment_T = torch.linalg.vecdot(weights_TV, shifted_TV)
    if bool(moment_T.isnan().any()):  # 0 · -inf, which is to be 0
        moment_T = torch.linalg.vecdot(weights_TV, shifted_TV.clamp_(min=LOGIT_FOR_MINUS_INF))
    mean_T1 = moment_T[:, None] / sum_T1
    found["entropy"] = (log_sum_T1 - mean_T1)[:, 0].clamp(min=0.0)
    if kept_TK is not None:
        ids_TK = torch.where(kept_TK, ids_TK, ids_TK[:, :1])
    rest_TV = weights_TV.scatter_(-1, ids_TK, 0.0)
    found["tail_logprobs"] = _tail(rest_TV, signal.tail_buckets, sum_T1)
    if uniforms_TD is not None and signal.sample:
        ids_TN, threshold_T = threshold_sample(
            rest_TV[:, :vocab_size], uniforms_TD[:, -1], signal.sample
        )
        logprobs_TN = shifted_TV.gather(-1, ids_TN.clamp(min=0)) - log_sum_T1
        found["sample_ids"] = ids_TN.to(torch.int32)
        found["sample_logprobs"] = logprobs_TN.masked_fill(ids_TN < 0, -torch.inf)
        found["sample_threshold"] = (threshold_T / sum_T1[:, 0]).log().float()
    return found


def _ranks(logits_TV: Tensor, token_T1: Tensor, top_TK: Tensor) -> Tensor:
    """Return one more than the number of larger logits, int32 [T].

    Args:
        logits_TV: all logits.
        token_T1: that of the token.
        top_TK: the largest ones, in order; a token among them needs no look at the others.
    """
    below_T = (token_T1 < top_TK[:, -1:]).all(-1)  # each of them where there are no largest ones
    below_N = below_T.nonzero()[:, 0]
    if 2 * len(below_N) > len(token_T1):  # to pick them would cost more than to look at all
        return (logits_TV > token_T1).sum(-1, dtype=torch.int32) + 1
    rank_T = (top_TK > token_T1).sum(-1, dtype=torch.int32) + 1
    if len(below_N):
        larger_NV = logits_TV[below_N] > token_T1[below_N]
        rank_T[below_N] = larger_NV.sum(-1, dtype=torch.int32) + 1
    return rank_T


def log_normalisers(
    shifted_TV: Tensor, log_sum_T1: Tensor, temperatures: Sequence[float]
) -> Tensor:
    """Return log Σ p^(1/T) over all ids at each temperature T, [T, number of temperatures].

    Args:
        shifted_TV: logits minus their maximum.
        log_sum_T1: log of the sum of their exponentials.
        temperatures: what they are divided by.
    """
    sums = [(shifted_TV / t).exp_().sum(-1).log() - log_sum_T1[:, 0] / t for t in temperatures]
    return torch.stack(sums, dim=-1)


def signal_uniforms(digest: str, tokens: int, signal: Signal) -> NDArray[np.float64] | None:
    """Return the random numbers of a sequence's positions, or None where a signal needs none.

    They are a function of sequence and position alone.

    Args:
        digest: of the sequence.
        tokens: response tokens.
        signal: what is kept.

    Returns:
        float64 [T, D] in [0, 1): one for each draw, then one for the sample.
    """
    parts = []
    for name, numbers in (("draws", signal.draws), ("sample", int(signal.sample > 0))):
        if numbers:
            seed = np.array([derived_seed(name, digest)])
            parts.append(uniforms(seed, tokens * numbers).reshape(tokens, numbers))
    return np.concatenate(parts, axis=1) if parts else None


def _cut(top_TK: Tensor, signal: Signal) -> tuple[Tensor, Tensor | None]:
    """Return the top-k log-probabilities with -inf beyond `top_p`, and where they are kept.

    The latter is None where all are.
    """
    if signal.top_p is None:
        return top_TK, None
    probs_TK = top_TK.double().exp()
    kept_TK = probs_TK.cumsum(-1) - probs_TK < signal.top_p
    kept_TK[:, : signal.min_k] = True
    return top_TK.masked_fill(~kept_TK, -torch.inf), kept_TK


def _tail(rest_TV: Tensor, buckets: int, sum_T1: Tensor) -> Tensor:
    """Return the log of the mass outside the top-k: a sum, so that nothing cancels."""
    if buckets == 1:
        return (rest_TV.sum(-1) / sum_T1[:, 0]).log()
    bucket_V = bucket_of(torch.arange(rest_TV.shape[1], device=rest_TV.device), buckets)
    mass_TM = rest_TV.new_zeros(len(rest_TV), buckets)
    return (mass_TM.index_add_(1, bucket_V, rest_TV) / sum_T1).log()


def _drawn(weights_TV: Tensor, uniforms_TD: Tensor) -> Tensor:
    """Return int32 ids drawn by inverting the cumulative weights in float64, ascending."""
    cumulative_TV = weights_TV.double().cumsum(-1)
    targets_TD = uniforms_TD.sort(-1).values * cumulative_TV[:, -1:]
    drawn_TD = torch.searchsorted(cumulative_TV, targets_TD, right=True)
    return drawn_TD.clamp(max=weights_TV.shape[1] - 1).to(torch.int32)
