"""Whether an engine holds the weights of a committed checkpoint, measured in nats.

The checkpoint's probe is scored and compared with what the checkpoint itself says; then a few
tokens are sampled and compared with their scores, since sampling runs on other code than scoring
does (CUDA graphs hold pointers). Nothing that is sampled here is used. Shapes: T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sampling
from schemas.columns import Floats, Ids
from schemas.scoresignal import Signal

EXACT_NATS = 1e-3
"""Largest difference that passes in float32."""


CAP_NATS = 0.1
"""Largest mean difference that passes in 16 bits, whatever the engine showed when it was new."""


FLOOR_NATS = 0.01
"""Mean difference in 16 bits below which nothing is suspected."""


ROUNDING = 2.0
"""How often its own mean difference, when it was new, an engine may differ in 16 bits."""


DRAWN_TOKENS = 16
"""Most tokens of a sampled row."""


@dataclass(frozen=True)
class Gap:
    """How far an engine is from a checkpoint, nats: the larger of what it scores and samples."""

    mean: float
    max: float

    @property
    def words(self) -> str:
        """Return it for people."""
        return f"{self.mean:.1e} nats on average, {self.max:.1e} at most"


def probe_scores(engine: Engine, probe: Probe) -> Floats:
    """Return the log-probabilities that an engine gives a probe's response tokens, float32 [T]."""
    return _scores(engine, probe.prompts, probe.responses)


def engine_gap(engine: Engine, probe: Probe, scores_T: Floats) -> Gap:
    """Return how far an engine is from the checkpoint that a probe belongs to.

    Args:
        engine: the engine.
        probe: the checkpoint's.
        scores_T: what the engine gives the probe.
    """
    prompts = probe.prompts
    room = engine.context_length - 1 - max(len(prompt) for prompt in prompts)
    sampling = Sampling(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=min(DRAWN_TOKENS, room),
        stop_token_ids=(),
    )
    samples = engine.generate(prompts, range(len(prompts)), sampling)
    drawn_T = np.concatenate([sample.logprobs for sample in samples])
    again_T = _scores(engine, prompts, [sample.ids for sample in samples])
    gaps = [np.abs(scores_T - probe.logprobs_T), np.abs(drawn_T - again_T)]
    return Gap(max(float(g.mean()) for g in gaps), max(float(g.max()) for g in gaps))


def refusal(gap: Gap, dtype: str, own: Gap | None) -> str | None:
    """Return why a gap is more than rounding, or None where it is not.

    Args:
        gap: what was found after a reload.
        dtype: the engine's number format.
        own: in 16 bits, what the same engine showed when it was new.
    """
    if dtype == "float32":
        found, limit, kind = gap.max, EXACT_NATS, "at most"
    else:
        usual = own.mean if own is not None else 0.0
        limit = min(CAP_NATS, max(ROUNDING * usual, FLOOR_NATS))
        found, kind = gap.mean, "on average"
    if found <= limit:  # NaN is refused
        return None
    return f"it is {gap.words}, away from the checkpoint, where {limit:.1e} {kind} would pass"


def _scores(engine: Engine, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Floats:
    found = engine.score(prompts, responses, signal=Signal(1), vocab_size=engine.vocab_size)
    return found.token_logprob
