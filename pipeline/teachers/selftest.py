"""What an engine's scores are worth, measured before a round's work is spent on them.

A few rows are scored alone, together and in the opposite order: with exact arithmetic nothing would
change. A wrong setting (a cache that is read, rows that are mixed up, a position off by one) shows
as nats here; rounding shows as far less. Shapes: T tokens, K top-k.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.engine import Engine
from pipeline.runs.figures import Noise
from pipeline.scores.drift import gap_of
from pipeline.scores.scores import Scores
from pipeline.scores.tolerances import EXACT, noise_limit
from schemas.columns import Floats, Ids
from schemas.config.score import ScoreSection
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.ragged import token_index
from schemas.scoresignal import Signal

ROWS = 4

TOKENS = 1024
"""Most rows and tokens of a self-test."""

_TESTED: WeakKeyDictionary[Engine, dict[tuple[str, int], Noise]] = WeakKeyDictionary()
"""What was found of engines that are still held, for each signal and vocabulary."""


def tolerance_of(section: ScoreSection, dtype: str) -> float:
    """Return the largest mean difference in nats that passes for rounding."""
    return noise_limit(dtype) if section.noise_tolerance is None else section.noise_tolerance


class SelfTest:
    """The self-test of one teacher's part of a round, done with the first rows that are scored."""

    def __init__(self, signal: Signal, *, vocab_size: int, tolerance: float, where: str) -> None:
        """Remember what is scored.

        Args:
            signal: what the stage keeps.
            vocab_size: ids that the student has too.
            tolerance: largest mean difference in nats.
            where: what messages call the teacher.
        """
        self._signal, self._vocab_size = signal, vocab_size
        self._tolerance, self._where = tolerance, where
        self.noise: Noise | None = None

    def once(self, engine: Engine, prompts: Sequence[Ids], responses: Sequence[Ids]) -> None:
        """Test an engine with a few of some rows, unless it was done with this very engine.

        Raises:
            DataError: its scores depend on their neighbours.
        """
        if self.noise is not None:
            return
        done = _TESTED.setdefault(engine, {})
        asked = (fingerprint(self._signal.words()), self._vocab_size)
        if asked in done:
            done[asked].check(self._tolerance, where=self._where)
            self.noise = done[asked]
            return
        pairs = zip(prompts, responses, strict=True)
        rows = few_rows(np.array([len(p) + len(r) for p, r in pairs]))
        noise = scoring_noise(
            engine,
            [prompts[i] for i in rows],
            [responses[i] for i in rows],
            signal=self._signal,
            vocab_size=self._vocab_size,
        )
        noise.check(self._tolerance, where=self._where)
        self.noise = done[asked] = noise


def few_rows(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a self-test: a few of mixed lengths, so that they are padded together.

    Args:
        lengths: tokens of each row, prompt and response.
    """
    order = np.argsort(lengths, kind="stable")
    fits = max(1, int((lengths <= TOKENS // ROWS).sum()))
    spread = np.unique(np.linspace(0, fits - 1, min(ROWS, fits)).round().astype(np.int64))
    return np.sort(order[spread]).astype(np.int64)


def scoring_noise(
    engine: Engine,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    signal: Signal,
    vocab_size: int,
) -> Noise:
    """Return how far an engine's scores depend on what else is scored.

    Only the top-k part of the signal is asked for.

    Raises:
        DataError: positions are missing, or a top-k is not one.
    """
    plain = Signal(max(signal.k, 1))
    rows, lengths = len(prompts), np.array([len(r) for r in responses])

    def score(order: Sequence[int]) -> Scores:
        found = engine.score(
            [prompts[i] for i in order],
            [responses[i] for i in order],
            signal=plain,
            vocab_size=vocab_size,
        )
        _check_shape(found, int(lengths[list(order)].sum()), plain.k, vocab_size)
        return found

    together = score(range(rows))
    back = token_index(lengths[::-1], np.arange(rows)[::-1])
    others = [score(range(rows)[::-1]).take(back), Scores.joined([score([i]) for i in range(rows)])]
    mine, theirs = np.tile(_flat(together), 2), np.concatenate([_flat(other) for other in others])
    both = np.isfinite(mine) & np.isfinite(theirs)
    gap = gap_of(mine[both], theirs[both])
    return Noise(int(lengths.sum()), gap.mean, gap.max)


def _flat(scores: Scores) -> Floats:
    """Return the log-probabilities of the tokens, and of the k-th most likely of each position."""
    return np.concatenate([scores.token_logprob, scores.topk_logprobs.reshape(-1)])


def _check_shape(scores: Scores, tokens: int, k: int, vocab_size: int) -> None:
    """Make sure that there is a top-k for each token, in rank order."""
    if scores.topk_ids.shape != (tokens, k) or len(scores.token_logprob) != tokens:
        raise DataError(
            f"the engine gave {scores.topk_ids.shape} top-k ids for {tokens} tokens and k = {k}"
        )
    scores.check(vocab_size=vocab_size, where="self-test")
    falling = scores.topk_logprobs[:, 1:] <= scores.topk_logprobs[:, :-1]
    sorted_ids = np.sort(scores.topk_ids, axis=1)
    if not falling.all() or (sorted_ids[:, 1:] == sorted_ids[:, :-1]).any():
        raise DataError("the engine's top-k is not in rank order, or names an id twice")
    first = scores.token_rank == 1
    if not np.allclose(scores.token_logprob[first], scores.topk_logprobs[first, 0], atol=EXACT):
        raise DataError("a token of rank 1 is not the first of its top-k")
