"""Responses of a tiny language that can all be written down, and their targets in float64."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.losses import look, losses_of
from pipeline.objectives.sides import Sides, plain_view
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens.seen import planned
from schemas.config.loss import LossConfig
from tests.support.lossreference import random_logits

IDS, LONGEST, STOP = 3, 3, 2
"""A response ends with the id 2, or after three tokens."""


class Language(NamedTuple):
    """Every response end to end, and the distributions behind them."""

    node_T: Tensor
    """Number of the prefix that each token follows."""
    token_T: Tensor
    row_T: Tensor
    student_NV: Tensor
    """Logits after each prefix."""
    log_p_NV: Tensor
    log_mu_NV: Tensor

    def of_tokens(self, values_NV: Tensor) -> Tensor:
        """Return what stands at each token, such as its log-probability."""
        return values_NV[self.node_T, self.token_T]

    def rows(self, values_T: Tensor) -> Tensor:
        """Return the sum over each response."""
        rows = int(self.row_T[-1]) + 1
        return torch.zeros(rows, dtype=values_T.dtype).index_add(0, self.row_T, values_T)


def responses() -> list[tuple[int, ...]]:
    """Return every response."""
    found, open_ones = list[tuple[int, ...]](), list[tuple[int, ...]]([()])
    while open_ones:
        prefix = open_ones.pop()
        for token in range(IDS):
            response = (*prefix, token)
            ends = token == STOP or len(response) == LONGEST
            (found if ends else open_ones).append(response)
    return found


def language(seed: int, *, drift: float = 0.7) -> Language:
    """Return a language whose sampling policy is so far from its student."""
    prefixes = sorted({response[:t] for response in responses() for t in range(len(response))})
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    steps = [(number[r[:t]], r[t], row) for row, r in enumerate(responses()) for t in range(len(r))]
    node_T, token_T, row_T = (torch.tensor(column) for column in zip(*steps, strict=True))
    student_NV, teacher_NV, noise_NV = random_logits(
        3 * len(prefixes), IDS, sharp=1.0, seed=seed
    ).chunk(3)
    mu_NV = (student_NV + drift * noise_NV).log_softmax(-1)
    return Language(node_T, token_T, row_T, student_NV, teacher_NV.log_softmax(-1), mu_NV)


def targets_of(text: Language, weight_T: Tensor | None = None) -> Targets:
    """Return the targets of every token, in float64, without a top-k."""
    tokens = len(text.token_T)
    return Targets(
        ids_TS=text.token_T[:, None],
        logprobs_TS=text.of_tokens(text.log_p_NV)[:, None],
        valid_TS=torch.ones(tokens, 1, dtype=torch.bool),
        tail_TB=torch.log1p(-text.of_tokens(text.log_p_NV).exp())[:, None],
        token_ids_T=text.token_T,
        token_logprob_T=text.of_tokens(text.log_p_NV),
        weight_T=torch.ones(tokens).double() if weight_T is None else weight_T,
        tail_clamped_T=torch.zeros(tokens, dtype=torch.bool),
        rollout_logprob_T=text.of_tokens(text.log_mu_NV),
        row_T=text.row_T,
    )


def token_losses_of(logits_TV: Tensor, targets: Targets, loss: LossConfig) -> Tensor:
    """Return the losses of tokens as they are made, in the type of the logits."""
    view = plain_view(logits_TV, targets)
    if loss.is_planned:
        targets = planned(targets, look(Sides(view, targets), loss), loss)
    return losses_of(Sides(view, targets), loss)[0]


def expected_gradient(text: Language, loss: LossConfig, *, chance_B: Tensor) -> Tensor:
    """Return the gradient of the expected loss of a response, by the student's logits [N, V]."""
    leaf_NV = text.student_NV.clone().requires_grad_()
    losses_T = token_losses_of(leaf_NV[text.node_T], targets_of(text), loss)
    total = (text.rows(losses_T) * chance_B).sum()
    return torch.autograd.grad(total, leaf_NV)[0]


def shuffled(targets: Targets, logits_TV: Tensor, order: list[int]) -> tuple[Targets, Tensor]:
    """Return some responses in another order."""
    assert targets.row_T is not None
    index = torch.cat([(targets.row_T == row).nonzero()[:, 0] for row in order])
    return replace(targets[index], plan=None), logits_TV[index]
