"""Engines that are ill: each is a real one, with one fault between it and opd.

Promises: what opd asks reaches the engine; the fault is in what is loaded, drawn or given back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.engines import opening
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.start import Note, Start, Use
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.scoresignal import Signal

Opener = Callable[[Start, Note], Engine]
"""Opens an engine, as those of `pipeline.engines.opening` do."""

FEW = 16
"""Rows of a call that is no more than a trial."""


@contextmanager
def behind(wrap: Callable[[Opener], Opener]) -> Iterator[None]:
    """Open engine `hf` through a function within a block."""
    known, hf = opening.ENGINES, opening.ENGINES["hf"]
    opening.ENGINES = {**known, "hf": replace(hf, open=wrap(hf.open))}
    try:
        yield
    finally:
        opening.ENGINES = known


class _Wrapped:
    """An engine that is another one, but for what a fault does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Shuffling(_Wrapped):
    """Gives each row the scores of the next one."""

    def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], **asked: Any) -> Scores:
        """Return scores of every token, those of the first row last."""
        scores = self._engine.score(prompts, responses, **asked)
        return scores.take(np.roll(np.arange(sum(map(len, responses))), len(responses[0])))


class ShufflingMany(Shuffling):
    """Does so where there are many rows, as one that shares memory between them may do."""

    def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], **asked: Any) -> Scores:
        """Return scores of every token, in disorder where there are many rows."""
        if len(prompts) <= FEW:
            found: Scores = self._engine.score(prompts, responses, **asked)
            return found
        return super().score(prompts, responses, **asked)


class Cooling(_Wrapped):
    """Draws at another temperature, and says so: its log-probabilities are those of its draws."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return responses that were drawn colder."""
        colder = replace(sampling, temperature=0.6 * sampling.temperature)
        drawn: list[Sample] = self._engine.generate(prompts, seeds, colder)
        return drawn


class CoolingInSilence(Cooling):
    """Says the log-probabilities that its draws would have as they were asked for."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return responses that were drawn colder, as if they were not."""
        drawn = super().generate(prompts, seeds, sampling)
        told = self._engine.score(
            prompts,
            [one.ids for one in drawn],
            signal=Signal(1),
            vocab_size=sampling.vocab_size or self._engine.vocab_size,
        ).token_logprob
        parts = np.split(told, np.cumsum([len(one.ids) for one in drawn])[:-1])
        return [replace(one, logprobs=part) for one, part in zip(drawn, parts, strict=True)]


class Forgetting(_Wrapped):
    """Gives none of the ids that are likely beside the drawn ones."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return responses without the ids that are likely beside theirs."""
        drawn = self._engine.generate(prompts, seeds, sampling)
        return [replace(one, candidate_ids=None, candidate_logprobs=None) for one in drawn]


def wrapped(use: Use, kind: Callable[[Engine], Any]) -> Callable[[Opener], Opener]:
    """Return what lets an engine be wrapped where it is opened for a use."""

    def between(opener: Opener) -> Opener:
        def opened(start: Start, note: Note) -> Engine:
            engine = opener(start, note)
            found: Engine = kind(engine) if start.use == use else engine
            return found

        return opened

    return between


def never_reloading(opener: Opener) -> Opener:
    """Return an opener that gives whoever samples the weights that came first."""
    first: list[Start] = []

    def opened(start: Start, note: Note) -> Engine:
        if start.use == "sample":
            first.append(start)
            start = replace(start, source=first[0].source)
        return opener(start, note)

    return opened
