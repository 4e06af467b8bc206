"""`[loss.weights]`: which tokens of a response are learned from, and how much from each."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.config.section import MOST, Fraction, Section, Text

Factor = Annotated[float, Field(ge=0.0, le=1e6)]

Nats = Annotated[float, Field(gt=0.0, le=1e6)]

Place = Annotated[int, Field(ge=0, le=MOST)]

Id = Annotated[int, Field(ge=0, le=MOST)]


class WeightsSection(Section):
    """`[loss.weights]`: factors of the distillation loss of single tokens; they multiply.

    Selections are made inside each response, so that nothing depends on micro-batches or processes.
    """

    least_divergence: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Tokens whose divergence is below this many nats are left out."""
    entropy_share: Fraction = 1.0
    """Keep this share of a response's tokens, those at which the student's entropy is highest."""
    divergence_share: Fraction = 1.0
    """Keep this share of a response's tokens, those of the largest divergence. Beside
    `entropy_share`: what either keeps."""
    divergence_clip: Nats | None = None
    """A token of a larger divergence, in nats, counts as if it had this one: a smaller weight."""
    prefix: Factor = 0.0
    """γ: tokens weigh from 1 + γ at a response's begin down to 1 at its end, as the log ratios
    between teacher and student add up."""
    positions: Annotated[tuple[tuple[Place, Factor], ...], Field(max_length=64)] = ()
    """Places in a response, from 0, and the weight there; a straight line between two of them."""
    special_ids: Annotated[tuple[Id, ...], Field(max_length=4096)] = ()
    """Ids of special tokens and of the template's: their weight is `special`."""
    special: Factor = 1.0
    """Weight of the tokens of `special_ids`, where they do not end a response."""
    end: Factor = 1.0
    """Weight of the token that ends a response by itself."""
    domain: Text | None = None
    """Free column of the prompts that names their domain. Each round its domains are weighed by the
    inverse of how far teacher and student differ there, between a quarter and 4."""
    rescale: bool = False
    """Make the weights of each response 1 on average, unless all are 0."""

    @model_validator(mode="after")
    def _check(self) -> "WeightsSection":
        places = [place for place, _ in self.positions]
        if any(second <= first for first, second in zip(places, places[1:], strict=False)):
            raise ValueError(f"the places of positions must rise, found {places}")
        if self.special != 1.0 and not self.special_ids:
            raise ValueError(
                "special is the weight of special_ids, and there are none: list them; "
                "`opd prompts show` prints the ids of a prompt"
            )
        return self

    @property
    def changed(self) -> bool:
        """Return whether the tokens of a response have other weights than its domain's."""
        return self.model_copy(update={"domain": None}) != type(self)()

    @property
    def of_student(self) -> bool:
        """Return whether weights depend on what the student says now."""
        by_share = self.entropy_share < 1.0 or self.divergence_share < 1.0
        by_divergence = self.least_divergence > 0.0 or self.divergence_clip is not None
        return by_share or by_divergence or self.prefix > 0.0
