"""The place of the student's vLLM engine between the stages of a process.

Promises: nothing is sampled from weights that are in doubt. An engine serves again with the very
checkpoint that it holds, or after another was put in its place and a comparison has found it there;
in every other case it is closed, and a new one starts from the committed checkpoint.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sampling
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.weightcheck import check_gap, engine_gap, probe_scores
from pipeline.models.source import ModelSource
from pipeline.scores.drift import Gap
from schemas.errors import IdentityError, OpdError

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


class EngineSlot:
    """Holds one engine that no stage uses at the moment, for the length of a block."""

    def __init__(self) -> None:
        """Begin without any."""
        self._kept: _Kept | None = None

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine that is kept, if any."""
        self.close()

    def close(self) -> None:
        """Close the engine that is kept, if any."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.engine.close()

    @contextmanager
    def lend(
        self, open_new: Callable[[], Engine], *, start: Start, weights: Weights, note: Note
    ) -> Iterator[Engine]:
        """Give an engine that holds some weights, and keep it after a block without error.

        Args:
            open_new: opens one of vLLM's where none is kept, or the kept one cannot serve.
            start: what that starts with.
            weights: what the block samples from.
            note: told whether the engine was kept, and why not.
        """
        from pipeline.engines.vllm.engine import VllmEngine

        kept = self._take(start, weights, note)
        if kept is None:
            engine = open_new()
            assert isinstance(engine, VllmEngine), "the configuration refuses others"
            kept = _Kept(engine, start.fixed, weights)
        with ExitStack() as unless_done:
            unless_done.callback(kept.engine.close)
            yield kept.engine
            unless_done.pop_all()
            self._kept = kept

    def _take(self, start: Start, weights: Weights, note: Note) -> "_Kept | None":
        """Return the kept engine with a stage's weights; None, and close it, if it cannot serve."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        begin = time.monotonic()
        with ExitStack() as unless_fit:
            unless_fit.callback(kept.engine.close)
            try:
                fit = _refitted(kept, start, weights, note)
                unless_fit.pop_all()
                return fit
            except OpdError as error:
                reason = str(error)
            except Exception as error:  # whatever it was, a new engine is right
                reason = f"{type(error).__name__}: {error}"
            spent = time.monotonic() - begin
        note(f"the kept engine is given up after {spent:.1f} s, a new one starts: {reason}")
        return None


@dataclass(frozen=True)
class _Kept:
    """An engine and what it holds."""

    engine: "VllmEngine"
    fixed: tuple[object, ...]
    """What it has started with and cannot change."""
    weights: Weights
    own: Gap | None = None
    """In 16 bits, how far it was from its first checkpoint with a probe."""


def _refitted(kept: _Kept, start: Start, weights: Weights, note: Note) -> _Kept:
    """Return a kept engine once it has a stage's weights for certain.

    Raises:
        IdentityError: it is another engine, or its weights cannot be relied on.
        Exception: it failed.
    """
    if kept.fixed != start.fixed:
        raise IdentityError("this stage has other settings")
    if kept.weights.version != weights.version:
        return _reloaded(kept, weights, note)
    kept.engine.relocate(weights.source)
    _check_alive(kept.engine)
    note("the engine was kept: it holds these weights already")
    return replace(kept, weights=weights)


def _reloaded(kept: _Kept, weights: Weights, note: Note) -> _Kept:
    """Return an engine with other weights in it, compared with what their checkpoint says."""
    engine, first, probe, own = kept.engine, kept.weights.probe, weights.probe, kept.own
    if probe is None:
        raise IdentityError("the checkpoint has no probe to compare it on")
    if weights.dtype != "float32" and own is None:
        if first is None:
            raise IdentityError(
                "its own rounding is not known, for it began with a checkpoint without probe"
            )
        own = engine_gap(engine, first)
    before_T, begin = probe_scores(engine, probe), time.monotonic()
    engine.reload(weights.source)
    if np.array_equal(probe_scores(engine, probe), before_T):
        raise IdentityError("after the reload it says to the last bit what it said before")
    gap = engine_gap(engine, probe)
    check_gap(gap, weights.dtype, own)
    note(
        f"the engine was kept, its weights were replaced in {time.monotonic() - begin:.1f} s and "
        f"compared with the checkpoint's: they differ by {gap.words}"
    )
    return replace(kept, weights=weights, own=own)


def _check_alive(engine: Engine) -> None:
    """Make sure that an engine answers: it may have died while another stage had the memory."""
    one = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1, stop_token_ids=())
    engine.generate([np.zeros(1, np.int32)], [0], one)
