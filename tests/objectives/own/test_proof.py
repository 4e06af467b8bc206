"""A loss of the user's own: proved before it is used, and then as good as one of opd's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.objectives.own.objective import OwnObjective
from pipeline.objectives.own.proof import proved
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError
from tests.support.lossreference import FORWARD, REVERSE, case, loss_and_gradient

OWN = LossConfig(kind="losses.py:mine")


def forward(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_with_slope(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    return forward(log_q, log_p), -log_p.exp()


def reverse(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(-1)


@pytest.mark.parametrize("k", [1, 4, 11, 12])
@pytest.mark.parametrize(
    ("function", "same"),
    [(forward, FORWARD), (forward_with_slope, FORWARD), (reverse, REVERSE)],
    ids=["autograd", "slope", "reverse"],
)
def test_the_users_form_of_a_loss_has_the_value_and_the_gradient_of_opds(
    function: Callable[..., Any], same: LossConfig, k: int
) -> None:
    logits_TV, _, targets = case(same, k=k)
    bucket = same.model_copy(update={"estimator": "bucket"})
    expected_T, expected_TV = loss_and_gradient(logits_TV, targets, bucket)
    found_T, found_TV = loss_and_gradient(logits_TV, targets, proved(OWN, function))
    torch.testing.assert_close(found_T, expected_T)
    torch.testing.assert_close(found_TV, expected_TV)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda q, p: (forward(q, p), p.exp() - q.exp()), "has a derivative that is not that of"),
        (lambda q, p: forward(q.detach(), p) + 0 * q.sum(-1), "has a gradient by autograd that is"),
        (lambda q, p: forward(q.detach(), p), "does not follow from log_q by torch's operations"),
        (lambda q, p: forward(q, p) - forward(q, p).mean(), "expected a loss of each position by"),
        (lambda q, p: forward(q, p) + torch.rand(len(q)), "and .* for the same one alone"),
        (lambda q, p: forward(q, p).sum(), r"expected a loss of each position.* shape \[1\]"),
        (lambda q, p: forward(q, p).long(), "returned a tensor of torch.int64"),
        (lambda q, p: (forward(q, p), p[:, :1]), "expected a derivative of each category"),
        (lambda q, p: 1.0, "returned a float, expected"),
        (lambda q, p: None, "returned a NoneType, expected"),
        (lambda q, p: forward(q, p) / 0.0, "loss with inf in it, expected finite"),
        (lambda q, p: (q / 0.0 * 0.0).sum(-1), "loss with nan in it"),
        (lambda q, p: forward(q, p.sub_(1)), "changed the tensors that it was given"),
        (lambda q, p: q @ p, "raised RuntimeError"),
        (lambda q, p: exit(3), "raised SystemExit: 3"),
    ],
)
def test_what_is_no_loss_is_refused_with_what_was_found(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        proved(OWN, function)
    assert str(caught.value).startswith("loss.kind = 'losses.py:mine' ")


def test_a_function_that_changes_its_mind_later_is_refused_then() -> None:
    answers = [True] * 100

    def fickle(log_q: Tensor, log_p: Tensor) -> Any:
        return forward_with_slope(log_q, log_p) if answers else forward(log_q, log_p)

    objective = proved(OWN, fickle)
    answers.clear()
    logits_TV, _, targets = case(FORWARD, k=4)
    with pytest.raises(ConfigError, match="returned its derivative when it was tried, and now"):
        loss_and_gradient(logits_TV, targets, objective)


def test_a_copy_of_the_objective_keeps_its_function() -> None:
    objective = proved(OWN, forward)
    copy = objective.model_copy(update={"rl_weight": 2.0})
    assert isinstance(copy, OwnObjective) and copy.rl_weight == 2.0
    logits_TV, _, targets = case(FORWARD, k=4)
    plain = objective.model_copy(update={"distill_weight": 3.0})
    once_T, _ = loss_and_gradient(logits_TV, targets, objective)
    thrice_T, _ = loss_and_gradient(logits_TV, targets, plain)
    torch.testing.assert_close(thrice_T, 3.0 * once_T)
