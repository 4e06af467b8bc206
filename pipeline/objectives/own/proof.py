"""The proof of a loss of the user's own: value and gradient on small random categories. Pure.

Promises: a derivative that is not that of the value, a position that looks at others, a number that
is none: each is refused with what was found and what was expected. Shapes: T tokens, C categories.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.own.objective import NOTHING, Function, OwnObjective, called, mistake
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError

SHAPES = ((1, 2), (3, 5), (4, 9))
"""Positions and categories of what a loss is tried on."""

_CLOSE = 1e-4
"""Largest difference of two gradients, or of two values, relative to 1 and to their size."""


class _Trial(NamedTuple):
    """A loss and what it is tried on."""

    loss: LossConfig
    function: Function
    log_q_TC: Tensor
    log_p_TC: Tensor

    def call(
        self, log_q_TC: Tensor, log_p_TC: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return loss and derivative."""
        log_p_TC = self.log_p_TC if log_p_TC is None else log_p_TC
        return called(self.loss, self.function, log_q_TC, log_p_TC)

    def refused(self, words: str) -> ConfigError:
        """Return the error that says what is wrong."""
        return mistake(self.loss, words)


def proved(loss: LossConfig, function: Function) -> OwnObjective:
    """Return the objective of a function that is a loss.

    Raises:
        ConfigError: it is none.
    """
    trials = [_trial(loss, function, *shape, seed=n) for n, shape in enumerate(SHAPES)]
    gives = [_prove(trial) for trial in trials]
    if any(gives) != all(gives):
        raise mistake(loss, "returned its derivative for some positions and not for others")
    return OwnObjective.of(loss, function, gives_slope=gives[0])


def _trial(
    loss: LossConfig, function: Function, tokens: int, categories: int, *, seed: int
) -> _Trial:
    """Return random categories: of many the last is absent, and the first has a floored p."""
    random = torch.Generator().manual_seed(seed)
    both = 2.0 * torch.randn(2, tokens, categories, generator=random, dtype=torch.float64)
    log_q_TC, log_p_TC = both.log_softmax(-1)
    if categories > SHAPES[0][1]:
        log_q_TC[:, -1] = log_p_TC[:, -1] = NOTHING
        log_p_TC[0, 0] = loss.teacher_logprob_floor
    return _Trial(loss, function, log_q_TC, log_p_TC)


def _prove(trial: _Trial) -> bool:
    """Return whether a function gives its derivative, once it is found to be a loss."""
    leaf_TC, log_p_TC = trial.log_q_TC.clone().requires_grad_(), trial.log_p_TC.clone()
    value_T, slope_TC = trial.call(leaf_TC, log_p_TC)
    if not (leaf_TC.equal(trial.log_q_TC) and log_p_TC.equal(trial.log_p_TC)):
        raise trial.refused("changed the tensors that it was given: work on copies of them")
    _require_numbers(trial, value_T, "loss")
    _check_alone(trial, value_T.detach())
    _check_low(trial)
    if slope_TC is None and not value_T.requires_grad:
        raise trial.refused(
            "returned a loss that does not follow from log_q by torch's operations: make it of "
            "them, or return the tuple of the loss and its derivative"
        )
    by_torch_TC = None
    if value_T.requires_grad:
        (by_torch_TC,) = torch.autograd.grad(value_T.sum(), leaf_TC, materialize_grads=True)
    numeric_TC = _by_differences(trial, value_T.dtype)
    if by_torch_TC is not None and slope_TC is None:
        _require_numbers(trial, by_torch_TC, "gradient by autograd")
        _compare(trial, by_torch_TC, numeric_TC, "gradient by autograd", value_T.dtype)
    if slope_TC is not None:
        _require_numbers(trial, slope_TC, "derivative")
        _compare(trial, slope_TC.detach(), numeric_TC, "derivative", value_T.dtype)
    return slope_TC is not None


def _require_numbers(trial: _Trial, values: Tensor, what: str) -> None:
    bad = ~values.detach().isfinite()
    if bool(bad.any()):
        found = float(values.detach()[bad][0])
        raise trial.refused(
            f"returned a {what} with {found} in it, expected finite numbers. A category that a "
            f"position does not have has log q = log p = {NOTHING:g}, and log p is at least "
            f"{trial.loss.teacher_logprob_floor:g} elsewhere"
        )


def _check_alone(trial: _Trial, value_T: Tensor) -> None:
    """Make sure that the loss of a position is the same whatever other positions there are."""
    for row in range(len(value_T)):
        one = slice(row, row + 1)
        alone_T, _ = trial.call(trial.log_q_TC[one].clone(), trial.log_p_TC[one].clone())
        if not torch.allclose(alone_T.detach(), value_T[one], rtol=_CLOSE, atol=_CLOSE):
            raise trial.refused(
                f"returned {float(value_T[row]):.6g} for a position among {len(value_T)}, and "
                f"{float(alone_T[0]):.6g} for the same one alone: expected a loss of each position "
                "by itself, without sums over positions or random numbers"
            )


def _check_low(trial: _Trial) -> None:
    """Make sure that it works in float32, which is what it will be given."""
    value_T, slope_TC = trial.call(trial.log_q_TC.float(), trial.log_p_TC.float())
    _require_numbers(trial, value_T, "loss in float32")
    if slope_TC is not None:
        _require_numbers(trial, slope_TC, "derivative in float32")


def _by_differences(trial: _Trial, dtype: torch.dtype) -> Tensor:
    """Return the gradient by central differences, a category of all positions at a time."""
    step, columns = (1e-5 if dtype == torch.float64 else 1e-2), []
    with torch.no_grad():
        for category in range(trial.log_q_TC.shape[1]):
            ends = []
            for sign in (1.0, -1.0):
                moved_TC = trial.log_q_TC.clone()
                moved_TC[:, category] += sign * step
                ends.append(trial.call(moved_TC, trial.log_p_TC.clone())[0].double())
            columns.append((ends[0] - ends[1]) / (2.0 * step))
    return torch.stack(columns, dim=-1)


def _compare(
    trial: _Trial, found_TC: Tensor, expected_TC: Tensor, what: str, dtype: torch.dtype
) -> None:
    """Make sure that a gradient is that of the values beside it."""
    close = _CLOSE if dtype == torch.float64 else 1e-2
    off_TC = (found_TC.double() - expected_TC).abs() / (1.0 + expected_TC.abs())
    if float(off_TC.max()) <= close:
        return
    row, category = divmod(int(off_TC.argmax()), off_TC.shape[1])
    log_q, log_p = float(trial.log_q_TC[row, category]), float(trial.log_p_TC[row, category])
    raise trial.refused(
        f"has a {what} that is not that of its loss: at log q = {log_q:.6g}, log p = {log_p:.6g} "
        f"it is {float(found_TC[row, category]):.6g}, expected "
        f"{float(expected_TC[row, category]):.6g}, by which the loss changes with this log q alone"
    )
