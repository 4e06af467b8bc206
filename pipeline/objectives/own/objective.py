"""A loss of the user's own: a function over categories in the place of one of opd's. Pure.

Promises: whatever the function does is told as its mistake. Must not: be given a function that
`proof.proved` has not held against its own gradient. Shapes: T tokens, C categories.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor

from pipeline.objectives.sides import Sides
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError, OpdError
from schemas.foreign import excerpt

NOTHING = -1e4
"""Least log-probability that a function is given: its exponential is 0, and no square overflows. A
category that a position does not have has it on both sides."""

Function = Callable[[Tensor, Tensor], Any]
"""From log q and log p [T, C] to the loss [T], or to a tuple of it and its derivative [T, C]."""


class OwnObjective(LossConfig):
    """An objective whose loss is a function of the user's own."""

    _function: Function = PrivateAttr()
    _gives_slope: bool = PrivateAttr()

    @classmethod
    def of(cls, loss: LossConfig, function: Function, *, gives_slope: bool) -> Self:
        """Return an objective with its function.

        Args:
            loss: the objective as configured.
            function: its loss.
            gives_slope: whether it returns its derivative too.
        """
        objective = cls.model_validate(loss.model_dump())
        objective._function, objective._gives_slope = function, gives_slope
        return objective

    def per_token(self, sides: Sides) -> Tensor:
        """Return the loss of each token, through which autograd sees log q.

        Raises:
            ConfigError: the function fails, or returns something else than when it was proved.
        """
        log_p_TC, log_q_TC, exists_TC = sides.categories
        log_q_TC = log_q_TC.clamp(min=NOTHING).masked_fill(~exists_TC, NOTHING)
        log_p_TC = log_p_TC.clamp(min=self.teacher_logprob_floor).masked_fill(~exists_TC, NOTHING)
        if not self._gives_slope:
            return called(self, self._function, log_q_TC, log_p_TC)[0]
        with torch.no_grad():
            loss_T, slope_TC = called(self, self._function, log_q_TC.detach(), log_p_TC)
        if slope_TC is None:
            raise mistake(self, "returned its derivative when it was tried, and now it does not")
        given: Tensor = _Given.apply(log_q_TC, loss_T, slope_TC)  # type: ignore[no-untyped-call] # torch's gap
        return given


class _Given(torch.autograd.Function):
    """A loss whose derivative with respect to log q was given with it."""

    @staticmethod
    def forward(ctx: Any, log_q_TC: Tensor, loss_T: Tensor, slope_TC: Tensor) -> Tensor:
        ctx.save_for_backward(slope_TC)
        return loss_T.clone()

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None]:
        (slope_TC,) = ctx.saved_tensors
        return grad_T[:, None] * slope_TC, None, None


def called(
    loss: LossConfig, function: Function, log_q_TC: Tensor, log_p_TC: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the loss of each token, and its derivative with respect to log q where it is given.

    Raises:
        ConfigError: the function fails, or what it returns has another form.
    """
    with mistakes(loss, "raised"):
        found = function(log_q_TC, log_p_TC)
    loss_T, slope_TC = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    _check_form(loss, loss_T, log_q_TC.shape[:1], "a loss of each position")
    if slope_TC is not None:
        _check_form(loss, slope_TC, log_q_TC.shape, "a derivative of each category")
    return loss_T, slope_TC


def _check_form(loss: LossConfig, found: Any, shape: torch.Size, what: str) -> None:
    if isinstance(found, Tensor) and found.shape == shape and found.is_floating_point():
        return
    told = f"a {type(found).__name__}"
    if isinstance(found, Tensor):
        told = f"a tensor of {found.dtype} with the shape {list(found.shape)}"
    raise mistake(
        loss,
        f"returned {told}, expected {what}: a floating-point tensor of the shape {list(shape)}. "
        "Return the loss [T], or a tuple of the loss [T] and its derivative [T, C]",
    )


@contextmanager
def mistakes(loss: LossConfig, verb: str) -> Iterator[None]:
    """Turn whatever the user's code raises in a block into a mistake of that code.

    Raises:
        ConfigError: it raised something.
    """
    try:
        yield
    except (OpdError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: the code is not opd's
        words = excerpt("".join(traceback.format_exception_only(error)).strip())
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        raise mistake(loss, f"{verb} {words}{where}") from error


def mistake(loss: LossConfig, words: str) -> ConfigError:
    """Return the error that names the loss."""
    return ConfigError(f"loss.kind = {loss.kind!r} {words}")
