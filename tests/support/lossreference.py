"""Losses in float64 that enumerate categories, one token at a time, and cases for them."""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets, build_targets
from schemas.config.loss import LossConfig

NEG_INF = -math.inf
FORWARD = LossConfig(kind="forward_kl")
REVERSE = LossConfig(kind="reverse_kl")
JSD = LossConfig(kind="jsd", beta=0.3)
ON_POLICY = LossConfig(kind="policy_gradient", importance="none")
OFF_POLICY = LossConfig(kind="policy_gradient", importance="token", importance_cap=1e9)
GKD = LossConfig(kind="gkd", beta=0.6, normalized=True)
SKEW = LossConfig(kind="skew_kl", skew=0.2)
SKEW_REVERSE = LossConfig(kind="skew_reverse_kl", skew=0.2)
TVD = LossConfig(kind="tvd")
ALPHA = LossConfig(kind="alpha", alpha=0.4)
DIVERGENCES = [FORWARD, REVERSE, JSD, GKD, SKEW, SKEW_REVERSE, TVD, ALPHA]
SFT = LossConfig(kind="sft")
ALL = [*DIVERGENCES, ON_POLICY, OFF_POLICY]


def name_of(loss: object) -> str:
    assert isinstance(loss, LossConfig)
    return loss.kind if loss.kind != "policy_gradient" else f"{loss.kind}-{loss.importance}"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(rows: int, vocab: int, *, sharp: float = 2.0, seed: int = 0) -> Tensor:
    """Random logits whose float32 form is exact, in float64."""
    return (sharp * torch.randn(rows, vocab, generator=rng(seed))).double()


def raw_columns(
    teacher_TV: Tensor, tokens_T: Tensor, k: int, *, mu_T: Tensor | None = None
) -> dict[str, Any]:
    """What a teacher cache holds: the arguments of `build_targets`."""
    log_p_TV = teacher_TV.log_softmax(-1)
    values_TV, ids_TV = log_p_TV.sort(-1, descending=True)
    return {
        "topk_ids_TK": ids_TV[:, :k],
        "topk_logprobs_TK": values_TV[:, :k].float(),
        "tail_T": values_TV[:, k:].logsumexp(-1).float(),
        "token_ids_T": tokens_T,
        "token_logprob_T": log_p_TV.gather(-1, tokens_T[:, None])[:, 0].float(),
        "weight_T": torch.ones(len(tokens_T)),
        "rollout_logprob_T": None if mu_T is None else mu_T.float(),
        "vocab_size": teacher_TV.shape[-1],
    }


def build(columns: dict[str, Any], **changes: Tensor) -> Targets:
    return build_targets(**{**columns, **changes})


def loss_and_gradient(
    logits_TV: Tensor, targets: Targets, loss: LossConfig
) -> tuple[Tensor, Tensor]:
    logits_TV = logits_TV.detach().clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # a NaN inside is an error, masked later or not
        loss_T, _ = token_losses(logits_TV, targets, loss)
        return loss_T.detach(), torch.autograd.grad(loss_T.sum(), logits_TV)[0]


def divergence(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Divergence of two full lists of float64 log-probabilities, straight from its definition."""
    p, q = log_p.exp(), log_q.exp()
    if loss.kind == "forward_kl":
        return (p * (log_p - log_q)).sum()
    if loss.kind == "reverse_kl":
        return (q * (log_q - log_p)).sum()
    if loss.kind == "tvd":
        return 0.5 * (p - q).abs().sum()
    if loss.kind == "alpha":
        both = (loss.alpha * log_p + (1 - loss.alpha) * log_q).exp().sum()
        return (1 - both) / (loss.alpha * (1 - loss.alpha))
    if loss.kind == "skew_kl":
        return (p * (log_p - (loss.skew * p + (1 - loss.skew) * q).log())).sum()
    if loss.kind == "skew_reverse_kl":
        return (q * (log_q - (loss.skew * q + (1 - loss.skew) * p).log())).sum()
    log_m = ((1 - loss.beta) * q + loss.beta * p).log()
    teacher, student = (p * (log_p - log_m)).sum(), (q * (log_q - log_m)).sum()
    value = loss.beta * teacher + (1 - loss.beta) * student
    return value / (loss.beta * (1 - loss.beta)) if loss.normalized else value


def merged(log_probs_V: Tensor, support: list[int]) -> Tensor:
    """Log-probabilities on the support and, where there are other ids, on their bucket."""
    others = [v for v in range(len(log_probs_V)) if v not in set(support)]
    bucket = [log_probs_V[others].logsumexp(-1)[None]] if others else []
    return torch.cat([log_probs_V[support], *bucket])


def reference(
    logits_TV: Tensor, teacher_TV: Tensor, targets: Targets, loss: LossConfig
) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, one token at a time."""
    logits_TV = logits_TV.detach().clone().requires_grad_()
    rows = []
    for t, (z_V, y) in enumerate(zip(logits_TV, targets.token_ids_T.tolist(), strict=True)):
        log_p_V, log_q_V = teacher_TV[t].log_softmax(-1), z_V.log_softmax(-1)
        if loss.kind != "policy_gradient":
            ids = targets.ids_TS[t][targets.valid_TS[t]].tolist()
            rows.append(divergence(merged(log_p_V, ids), merged(log_q_V, ids), loss))
            continue
        advantage = (log_p_V[y] - log_q_V[y]).detach()
        mu = targets.rollout_logprob_T
        weight = log_q_V[y] if mu is None else (log_q_V[y] - mu[t].double()).exp()
        rows.append(-advantage * weight)
    loss_T = torch.stack(rows)
    return loss_T.detach(), torch.autograd.grad(loss_T.sum(), logits_TV)[0]


def assert_matches_reference(
    logits_TV: Tensor, teacher_TV: Tensor, targets: Targets, loss: LossConfig
) -> None:
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
    expected_T, expected_TV = reference(logits_TV, teacher_TV, targets, loss)
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad_TV.double(), expected_TV, rtol=2e-6, atol=1e-6)


def case(
    loss: LossConfig, k: int, *, rows: int = 9, vocab: int = 12
) -> tuple[Tensor, Tensor, Targets]:
    """Student logits, teacher logits and targets of random positions."""
    logits_TV, teacher_TV = random_logits(rows, vocab, seed=1), random_logits(rows, vocab, seed=2)
    tokens_T = torch.randint(0, vocab, (rows,), generator=rng(3))
    mu_TV = (logits_TV + 0.3 * random_logits(rows, vocab, seed=4)).log_softmax(-1)
    mu_T = mu_TV.gather(-1, tokens_T[:, None])[:, 0] if loss is OFF_POLICY else None
    return logits_TV, teacher_TV, build(raw_columns(teacher_TV, tokens_T, k, mu_T=mu_T))
