"""Whether an engine holds the weights of a committed checkpoint, measured in nats.

The checkpoint's probe is scored and compared with what the checkpoint itself says; then a few
tokens are sampled and compared with their scores, since sampling runs on other code than scoring
does (CUDA graphs hold pointers). Nothing that is sampled here is used. Shapes: T tokens.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sampling
from pipeline.scores.drift import Gap, gap_of
from pipeline.scores.tolerances import EXACT, reload_limit
from schemas.columns import Floats, Ids
from schemas.errors import IdentityError
from schemas.scoresignal import Signal

DRAWN_TOKENS = 16
"""Most tokens of a sampled row."""


def probe_scores(engine: Engine, probe: Probe) -> Floats:
    """Return the log-probabilities that an engine gives a probe's response tokens, float32 [T]."""
    return _scores(engine, probe.prompts, probe.responses)


def engine_gap(engine: Engine, probe: Probe) -> Gap:
    """Return how far an engine is from a probe's checkpoint: the larger of scores and samples."""
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
    scored, drawn = gap_of(probe_scores(engine, probe), probe.logprobs_T), gap_of(drawn_T, again_T)
    mean, largest = np.maximum(scored.mean, drawn.mean), np.maximum(scored.max, drawn.max)
    return Gap(float(mean), float(largest))  # NaN where one is, which `max` may lose


def check_gap(gap: Gap, dtype: str, own: Gap | None) -> None:
    """Make sure that a gap is no more than rounding.

    Args:
        gap: what was found after a reload.
        dtype: the engine's number format.
        own: in 16 bits, what the same engine showed when it was new.

    Raises:
        IdentityError: it is more.
    """
    own_mean = own.mean if own is not None else 0.0
    limit = EXACT if dtype == "float32" else reload_limit(own_mean)
    if passing := gap.beyond(limit, dtype):
        raise IdentityError(f"it is {gap.words}, away from the checkpoint, where {passing}")


def _scores(engine: Engine, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Floats:
    found = engine.score(prompts, responses, signal=Signal(1), vocab_size=engine.vocab_size)
    return found.token_logprob
