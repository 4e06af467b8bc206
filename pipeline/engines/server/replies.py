"""Replies of a vLLM server: parsed, and refused where a number cannot be right. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from pipeline.engines.server.client import BadReply
from schemas.tables import LOGPROB_ROUNDING


def scored(reply: Any) -> Any:
    """Return the part of a reply that has `prompt_logprobs`, for either endpoint."""
    found = reply.get("prompt_logprobs") if isinstance(reply, dict) else None
    try:
        return reply if found is not None else reply["choices"][0]
    except FORM_ERRORS as error:
        raise BadReply(f"sent a reply of another form ({error})") from error


FORM_ERRORS = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(OverflowError, RecursionError, StopIteration),
)
"""What reading raises where a reply has another form: too large a number, an empty row and such."""


def parse(data: bytes) -> Any:
    """Return the JSON of a reply; NaN and Infinity are read, to be refused by name.

    Raises:
        BadReply: it is no JSON.
    """
    try:
        return from_json(data, allow_inf_nan=True)
    except ValueError as error:
        raise BadReply(f"sent what is no JSON ({error})") from error


def check_logprobs(logprobs: NDArray[np.float64]) -> None:
    """Make sure that numbers can be log-probabilities.

    Raises:
        BadReply: one is a NaN or positive.
    """
    if np.isnan(logprobs).any():
        raise BadReply("sent a log-probability that is NaN or null")
    if (logprobs > LOGPROB_ROUNDING).any():
        raise BadReply(f"sent a positive log-probability, {logprobs.max():g}")
