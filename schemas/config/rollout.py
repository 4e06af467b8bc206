"""`[rollout]`: how the student samples."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.section import (
    MOST,
    Fraction,
    Natural,
    Positive,
    StopTexts,
    Temperature,
    later,
)

TokenId = Annotated[int, Field(ge=0, le=MOST)]


class RolloutSection(EngineSection):
    """`[rollout]`: how the student samples."""

    prompts_per_round: Positive
    """Prompts drawn in each round, without repetition inside an epoch over the file."""
    samples_per_prompt: Positive
    """Responses sampled for each prompt."""
    max_new_tokens: Positive
    """Longest response in tokens, stop token included."""
    temperature: Temperature
    """Sampling temperature; 1.0 is on-policy: the student's own distribution."""
    top_p: Fraction
    """Nucleus (top-p) sampling; 1.0 turns it off, and is what importance weights need."""
    top_k: Natural
    """Top-k sampling; 0 turns it off, and is what importance weights need."""
    stop_token_ids: tuple[TokenId, ...] | None = None
    """Ids that end a response; default: every end id that the tokenizer and the model name."""
    stop_strings: StopTexts = later(())
    """Texts that also end a response, in rollout and eval, with the token that completes one of
    them. At most 16, of at most 256 characters each."""
    candidates: Annotated[int, Field(ge=0, le=4096)] = 0
    """The student's most likely ids that are recorded at each position. Teachers score them too,
    for objectives weighted by the student."""
    sample: Annotated[int, Field(ge=0, le=4096)] = later(0)
    """Distinct ids sampled at each position from the distribution that the student draws from: the
    likeliest for certain, the others in proportion to their probability. Teachers score them."""
    sample_most: Annotated[int, Field(ge=0, le=4096)] = later(0)
    """Most ids that one position has of them. With it, `sample` is what a unit's positions have on
    average: flat ones have more, peaked ones fewer. 0: each has `sample`."""
    prompts_per_unit: Positive = 256
    """Prompts per unit of work: one shard, one commit, the most that a crash can lose."""

    @model_validator(mode="after")
    def _check_rows(self) -> "RolloutSection":
        rows = self.prompts_per_round * self.samples_per_prompt
        if rows > MOST:
            raise ValueError(
                f"prompts_per_round × samples_per_prompt are {rows} responses of a round, above "
                f"{MOST}: make more and smaller rounds"
            )
        return self

    @model_validator(mode="after")
    def _check_sample(self) -> "RolloutSection":
        if self.sample_most and self.sample_most <= self.sample:
            raise ValueError(
                f"sample_most = {self.sample_most} is not above sample = {self.sample}, which is "
                "what positions have on average: raise it, or remove it"
            )
        if self.sample_most and not self.sample:
            raise ValueError("sample_most needs sample, which positions have on average")
        return self

    @property
    def most_sampled(self) -> int:
        """Return the most ids of the sample at one position."""
        return max(self.sample, self.sample_most)

    @property
    def is_whole(self) -> bool:
        """Whether samples are drawn from the student's own distribution, neither hot nor cut."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0

    @property
    def response_limit(self) -> int:
        """Return the most tokens of a response."""
        return self.max_new_tokens
