"""The table that says which adapter the learner trains."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.section import Positive, Section


class LoraSection(Section):
    """`[train.lora]`: a low-rank adapter learns and the model's own weights stay as they are."""

    rank: Positive
    """Width of the adapter: each of its layers has rank × (inputs + outputs) weights."""
    alpha: Annotated[float, Field(gt=0.0)]
    """Strength of the adapter: what it adds to a layer is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the linear layers that get an adapter, such as `["q_proj", "v_proj"]`; `all-linear`
    takes every one but the language-model head."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of an adapter's inputs that are left out at random in training."""
