"""The student's vLLM engine, kept from one stage of a process to the next.

Promises: nothing is sampled from weights that are in doubt. An engine serves again with the very
checkpoint that it holds, or after another was put in its place and the canary has found it there;
in every other case it is closed, and a new one starts from the committed checkpoint.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sampling
from pipeline.engines.vllm.weightcheck import engine_gap, probe_scores, refusal
from pipeline.models.source import ModelSource
from pipeline.scores.drift import Gap
from schemas.config.engines import EngineSection

if TYPE_CHECKING:
    from pipeline.engines.vllm.engine import VllmEngine


@dataclass(frozen=True)
class Weights:
    """Weights that a stage samples from: where they are, and which they are."""

    source: ModelSource
    version: str
    """Policy version, or what else names them."""
    dtype: str
    probe: Probe | None = None
    """What the checkpoint itself says of a few sequences, where it came with that."""


@dataclass(frozen=True)
class Kept:
    """An engine that no stage uses at the moment."""

    engine: "VllmEngine"
    settings: tuple[Any, ...]
    weights: Weights
    own: Gap | None
    """In 16 bits, how far it was from its first checkpoint with a probe."""


class EngineKeeper:
    """The place of one engine between stages, for the length of a block."""

    def __init__(self) -> None:
        """Begin without any."""
        self._kept: Kept | None = None

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine that is kept, if any."""
        self.close()

    def close(self) -> None:
        """Close the engine that is kept, if any."""
        kept = self.take()
        if kept is not None:
            kept.engine.close()

    def take(self) -> Kept | None:
        """Return the engine that is kept, which is the caller's to close from now on."""
        kept, self._kept = self._kept, None
        return kept

    def put(self, kept: Kept) -> None:
        """Keep an engine."""
        self._kept = kept


class Turn:
    """A stage's turn with the kept engine: found at its first use, kept at its end."""

    def __init__(
        self,
        keeper: EngineKeeper,
        section: EngineSection,
        weights: Weights,
        *,
        max_tokens: int,
        note: Callable[[str], None],
    ) -> None:
        """Remember what the stage needs.

        Args:
            keeper: where the engine is between stages.
            section: the stage's settings.
            weights: what it samples from.
            max_tokens: longest prompt and response together.
            note: told whether the engine was kept, and why not.
        """
        self._keeper, self._weights, self._note = keeper, weights, note
        tokens = (section.batch_tokens, section.logit_chunk_tokens, max_tokens)
        trust = weights.source.trust_remote_code
        self._settings = (section.engine, section.vllm, *tokens, weights.dtype, trust)
        self._own: Gap | None = None

    def find(self) -> Engine | None:
        """Return the kept engine with the stage's weights in it; None where a new one is needed."""
        kept = self._keeper.take()
        if kept is None:
            return None
        with ExitStack() as stack:
            stack.callback(kept.engine.close)
            begin = time.monotonic()
            try:
                reason = self._misfit(kept)
            except Exception as error:  # whatever it was, a new engine is right
                reason = f"{type(error).__name__}: {error}"
            if reason is None:
                stack.pop_all()
                return kept.engine
            spent = time.monotonic() - begin
        self._own = None
        self._note(f"the kept engine is given up after {spent:.1f} s, a new one starts: {reason}")
        return None

    def keep(self, engine: Engine) -> bool:
        """Keep an engine that holds the stage's weights, if it is vLLM; return whether it is."""
        from pipeline.engines.vllm.engine import VllmEngine

        if not isinstance(engine, VllmEngine):
            return False
        self._keeper.put(Kept(engine, self._settings, self._weights, self._own))
        return True

    def _misfit(self, kept: Kept) -> str | None:
        """Return why an engine cannot serve the stage; None once it has the stage's weights."""
        self._own = kept.own
        if kept.settings != self._settings:
            return "this stage has other settings"
        if kept.weights.version != self._weights.version:
            return self._reloaded(kept)
        kept.engine.relocate(self._weights.source)
        _answers(kept.engine)
        self._note("the engine was kept: it holds these weights already")
        return None

    def _reloaded(self, kept: Kept) -> str | None:
        """Put the stage's weights into an engine; return why they cannot be relied on, or None."""
        engine, probe, dtype = kept.engine, self._weights.probe, self._weights.dtype
        if probe is None:
            return "the checkpoint has no probe to compare it on"
        if dtype != "float32" and self._own is None:
            first = kept.weights.probe
            if first is None:
                return "its own rounding is not known, for it began with a checkpoint without probe"
            self._own = engine_gap(engine, first, probe_scores(engine, first))
        before_T, begin = probe_scores(engine, probe), time.monotonic()
        engine.reload(self._weights.source)
        scores_T = probe_scores(engine, probe)
        if np.array_equal(scores_T, before_T):
            return "after the reload it says to the last bit what it said before"
        gap = engine_gap(engine, probe, scores_T)
        reason = refusal(gap, dtype, self._own)
        if reason is None:
            spent = time.monotonic() - begin
            self._note(
                f"the engine was kept, its weights were replaced in {spent:.1f} s and compared "
                f"with the checkpoint's: they differ by {gap.words}"
            )
        return reason


def _answers(engine: Engine) -> None:
    """Make sure that an engine is alive: it may have died while another stage had the memory."""
    one = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1, stop_token_ids=())
    engine.generate([np.zeros(1, np.int32)], [0], one)
