"""What is made of logits inside vLLM's workers: a teacher's signals, a student's own sample.

A request says in its job what it needs; each kind of work makes tensors of that for the positions
of a step, and arrays from logits and a part of these tensors. Shapes: N positions of one step, T
positions of a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.engine import Sampling
from pipeline.engines.hf.sampling import own_sample, own_uniforms, processed_logprobs
from pipeline.scores.signals import score_signals, signal_uniforms
from schemas.scoresignal import Signal


class Piece(NamedTuple):
    """Consecutive positions of one request in one step."""

    job: Mapping[str, Any]
    ids: Sequence[int]
    """Ids of prompt and response."""
    start: int
    """First response token that is predicted here."""
    tokens: int
    offset: int
    """Where the hidden states that predict them begin in the step."""

    @property
    def end(self) -> int:
        """The response token after the last one that is predicted here."""
        return self.start + self.tokens

    def targets(self) -> NDArray[np.int64]:
        """Return the ids that stand at the predicted positions."""
        first = int(self.job["prompt"])
        return np.array(self.ids[first + self.start : first + self.end], dtype=np.int64)


class Work(Protocol):
    """What is made of the logits of some positions."""

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """Return what it needs besides logits, as arrays over the positions of the pieces."""

    def arrays(
        self, logits_NV: Tensor, targets_N: Tensor, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return arrays over some positions, `token_logprob` among them."""


@dataclass(frozen=True)
class Scoring:
    """A teacher's signals."""

    signal: Signal
    vocab_size: int
    """Ids that may enter the top-k."""

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """Return candidates and random numbers, where the signal has some."""
        found: dict[str, NDArray[Any]] = {}
        if self.signal.candidates:
            rows = [np.frombuffer(piece.job["candidates"], dtype=np.int32) for piece in pieces]
            shaped = [row.reshape(-1, self.signal.candidates).astype(np.int64) for row in rows]
            found["candidates_TN"] = _joined(shaped, pieces)
        if self.signal.draws or self.signal.sample:
            numbers = [signal_uniforms(p.job["digest"], p.end, self.signal) for p in pieces]
            found["uniforms_TD"] = _joined([n for n in numbers if n is not None], pieces)
        return found

    def arrays(
        self, logits_NV: Tensor, targets_N: Tensor, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the signals."""
        return score_signals(
            logits_NV, targets_N, signal=self.signal, vocab_size=self.vocab_size, **inputs
        )


@dataclass(frozen=True)
class OwnSample:
    """A threshold sample of the distribution that a student draws from."""

    sampling: Sampling

    def inputs(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """Return a random number for each position."""
        numbers = [own_uniforms([int(p.job["seed"])], p.end)[0] for p in pieces]
        return {"uniforms": _joined(numbers, pieces)}

    def arrays(
        self, logits_NV: Tensor, targets_N: Tensor, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return ids and log-probabilities of the sample, and of the token that was drawn."""
        logprobs_NV = processed_logprobs(
            logits_NV[:, : self.sampling.vocab_size],
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
        )
        ids_NS, found_NS = own_sample(logprobs_NV, inputs["uniforms"], self.sampling.sample)
        return {
            "token_logprob": logprobs_NV.gather(-1, targets_N[:, None])[:, 0],
            "sample_ids": ids_NS.to(torch.int32),
            "sample_logprobs": found_NS,
        }


def _joined(rows: Sequence[NDArray[Any]], pieces: Sequence[Piece]) -> NDArray[Any]:
    """Return what rows have for the positions of the pieces; rows begin at the first response."""
    return np.concatenate([r[p.start : p.end] for r, p in zip(rows, pieces, strict=True)])
