"""`[score]`: what the teacher's pass keeps of each position."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.section import Positive, later, tuning
from schemas.scoresignal import FURTHER, MOST_TEMPERATURES


def _distinct(temperatures: tuple[float, ...]) -> tuple[float, ...]:
    twice = [t for index, t in enumerate(temperatures) if t in temperatures[:index]]
    if twice:
        raise ValueError(f"{twice[0]:g} is listed twice; remove one")
    if 1.0 in temperatures:
        raise ValueError("at temperature 1 log Z is 0, and scores are of it anyway; remove 1.0")
    return temperatures


Temperatures = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100.0)], ...],
    Field(max_length=MOST_TEMPERATURES),
    AfterValidator(_distinct),
]


class ScoreSection(EngineSection):
    """`[score]`: what the teacher's pass keeps of each position."""

    k: Annotated[int, Field(ge=0, le=2**20)]
    """Top-k ids and logprobs kept at each position; with `top_p`, at most this many. 0 where a
    sample stands in their place: `sample`, or `rollout.sample`."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Probability mass at which a position's top-k ends: peaked positions keep few ids, and the
    tail has the rest. Default, as 1.0: `k` ids at every position."""
    min_k: Positive = 1
    """Fewest ids of a position with `top_p`."""
    tail_buckets: Annotated[int, Field(gt=0, le=65536)] = 1
    """Parts in which the mass outside the top-k is kept; a hash of the id chooses the part."""
    draws: Annotated[int, Field(ge=0, le=65536)] = 0
    """Ids drawn from the teacher's whole distribution at each position: unbiased sparse targets."""
    sample: Annotated[int, Field(ge=0, le=65536)] = later(0)
    """Distinct ids sampled from what lies outside the top-k at each position: the likeliest for
    certain, the others in proportion to their probability."""
    temperatures: Temperatures = later(())
    """Temperatures other than 1 at which log Z of the teacher's whole distribution is kept, so that
    a loss can be tempered: one number a token and temperature."""
    noise_tolerance: Annotated[float, Field(gt=0.0, le=1e6)] | None = tuning(None)
    """Largest mean difference, in nats, between scores of the same tokens alone, in a batch and in
    another order. Above it, scoring is refused. Default 0.001 in float32, else 0.1."""
    codec: Literal["typed-v1", "packed-v1"] = "typed-v1"
    """Form of stored scores: `typed-v1` opens in any Parquet reader, `packed-v1` is smallest."""
    reuse: Literal["exact", "same-weights"] = "exact"
    """Whose stored scores are reused. `exact`: this very scorer's. `same-weights`: also those of
    the same weights under another engine, version, dtype or codec; the records name them."""

    @model_validator(mode="after")
    def _check(self) -> "ScoreSection":
        if self.min_k > max(self.k, 1):
            raise ValueError(f"min_k = {self.min_k} is above k = {self.k}")
        if self.top_p in (None, 1.0) and self.min_k != 1:
            raise ValueError("min_k needs top_p")
        if not self.k and self.top_p not in (None, 1.0):
            raise ValueError("top_p is where a top-k ends, and k = 0 keeps none: remove it")
        asked = [name for name, off in FURTHER.items() if getattr(self, name, off) != off]
        if self.engine == "server" and asked:
            raise ValueError(
                f"no server gives the full logits that {' and '.join(asked)} are made of: set "
                "score.engine to 'vllm' or 'hf'"
            )
        if self.vllm.prefix_caching:
            raise ValueError("vllm.prefix_caching would leave positions without a score")
        if self.vllm.keep_between_stages:
            raise ValueError(
                "vllm.keep_between_stages is for [rollout.vllm] and [eval.vllm]: a teacher's "
                "engine ends with its stage"
            )
        return self
