"""`[score]`: what the teacher's pass keeps of each position, and what it keeps by default.

Where `score.k` is left out, the loss decides: `benchmarks support` measures what it learns most
from. A run pins these numbers as if its TOML named them; a TOML with `score.k` means what it did.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.loss import suited
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

TOP_K = 64
"""Top-k of a loss that no sample suits, and where none can be had."""

OWN_K, OWN, OWN_MOST = 4, 26, 80
"""The teacher's likeliest ids and the student's sampled ones, on average and at most, for a loss
that suits the latter."""

TEACHERS = 32
"""The teacher's sampled ids, for a loss that suits them alone: in the place of a top-k."""


def _without_k(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a TOML do without `k`, which follows from the loss then."""
    schema["required"] = [key for key in schema["required"] if key != "k"]


class ScoreSection(EngineSection):
    """`[score]`: what the teacher's pass keeps of each position."""

    model_config = ConfigDict(json_schema_extra=_without_k)

    k: Annotated[int, Field(ge=0, le=2**20, json_schema_extra={"default": "what suits the loss"})]
    """Top-k ids and logprobs kept at each position; with `top_p`, at most this many. 0 where a
    sample stands in their place: `sample`, or `rollout.sample`. Left out, it is 4 with
    `rollout.sample` = 26 and `rollout.sample_most` = 80 for losses that weigh by the student, 0
    with `sample` = 32 for `forward_kl`, and 64 for other losses, with `top_p`, truncated rollouts
    and servers."""
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


def with_kept(tree: Any) -> Any:
    """Return the tables of a TOML with `score.k` and what belongs to it; given keys stay.

    What is no table, or no possible value, is left to those who check it.
    """
    if not isinstance(tree, Mapping) or not isinstance(tree.get("score"), Mapping):
        return tree
    score, rollout = dict(tree["score"]), _table(tree, "rollout")
    if "k" in score:
        return tree
    sample = _sample(score, rollout, _table(tree, "loss"))
    if sample == "student":
        score["k"] = OWN_K
        if "sample" not in rollout:
            rollout["sample"] = OWN
            rollout.setdefault("sample_most", OWN_MOST)
        return {**tree, "score": score, "rollout": rollout}
    if sample == "teacher":
        score["k"] = 0
        score.setdefault("sample", TEACHERS)
    else:
        score["k"] = TOP_K
    return {**tree, "score": score}


def _sample(
    score: Mapping[str, Any], rollout: Mapping[str, Any], loss: Mapping[str, Any]
) -> str | None:
    """Return whose sample suits the loss best and can be had; None where none does.

    A tempered loss and one of buckets read none, and a `top_p` cuts a top-k, so it asks for one. No
    server gives what samples are made of, and what is drawn from a truncated rollout says nothing
    of the ids that were cut away.
    """
    tempered = loss.get("temperature", 1.0) != 1.0 or loss.get("estimator") == "bucket"
    if score.get("engine") == "server" or "top_p" in score or tempered:
        return None
    kind, values = loss.get("kind"), {n: loss[n] for n in ("beta", "alpha") if n in loss}
    suits = suited(kind, **values) if isinstance(kind, str) else ()
    whole = rollout.get("top_p") == 1.0 and rollout.get("top_k") == 0
    own = whole and rollout.get("engine") != "server"
    return next((of for of in suits if of == "teacher" or own), None)


def _table(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = tree.get(name)
    return dict(found) if isinstance(found, Mapping) else {}
