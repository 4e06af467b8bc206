"""`[loss.policy]`: what the policy gradient makes of the sampled token's log ratio."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from schemas.config.section import Section

REFUSED = {
    "k1": "differentiated, it has an expected gradient of 0 on-policy: the log ratio belongs into "
    "the advantage. Write 'advantage', or 'k1+' for its value",
    "k3": "differentiated, it has the gradient of the forward KL, by weights p/q of heavy tails. "
    "Write 'k3+' for its value, or loss.kind = 'forward_kl'",
    "abs": "differentiated, it has the gradient of the total variation: write loss.kind = 'tvd'",
    "full": "it is no estimate by the sampled token: write loss.kind = 'reverse_kl'",
}
"""Estimators of the KL whose gradient is not that of the reverse KL, and why."""

ALIASES = {"kl": "k1", "kl+": "k1+", "mse": "k2", "low_var_kl": "k3", "low_var_kl+": "k3+"}
"""Other names of estimators, as verl has them."""


def _right(value: Any) -> Any:
    """Return an estimator by its own name; refuse those that teach something else."""
    name = ALIASES.get(value, value) if isinstance(value, str) else value
    if isinstance(name, str) and name in REFUSED:
        raise ValueError(f"{value!r} is no loss: {REFUSED[name]}")
    return name


KlType = Annotated[Literal["advantage", "k2", "k1+", "k3+"], BeforeValidator(_right)]

Clip = Annotated[float, Field(gt=0.0, le=1e6)]


class PolicySection(Section):
    """`[loss.policy]`: of `loss.kind = "policy_gradient"` alone."""

    kl_type: KlType = "advantage"
    """`advantage`: the log ratio stands as a constant beside the gradient of log q. `k2`: half its
    square is differentiated. `k1+`, `k3+`: the value of k1 or k3. All have one gradient, that of
    the reverse KL; `k1` and `k3` differentiated have not, and are refused."""
    mix: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Advantage log(mix·p/q + 1 − mix), never below log(1 − mix); 1 is the log ratio itself. Below
    1 the gradient is that of the JSD with this `beta`, over 1 − mix."""
    discount: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much the advantage of each later token of a response counts for a token. 0: its own
    alone, the KL at given prefixes. 1: the KL of whole responses."""
    baseline: Literal["none", "before", "response"] = "none"
    """What is taken off advantages: `before`, their mean over the earlier tokens of the response,
    which leaves the expected gradient as it is; `response`, the mean over its other tokens."""
    standardize: bool = False
    """Divide advantages by the root of their mean square over the response."""
    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """How far below 1 the ratio of probabilities counts where the advantage is negative."""
    clip_high: Clip | None = None
    """How far above 1 the ratio of probabilities counts where the advantage is positive."""
    beyond_cap: Literal["truncate", "mask"] = "truncate"
    """What becomes of a weight above `loss.importance_cap`: the cap, or 0."""
    importance_floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """A weight below it is 0."""

    @model_validator(mode="after")
    def _check(self) -> "PolicySection":
        others = [name for name in self.changed if name not in ("kl_type", *WEIGHTS)]
        if self.kl_type != "advantage" and others:
            raise ValueError(
                f"kl_type = {self.kl_type!r} is a loss of its own: {', '.join(others)} would "
                "change an advantage, which it does not have. Leave one of them out"
            )
        return self

    @property
    def changed(self) -> tuple[str, ...]:
        """Return the keys that are not at their default."""
        fields = type(self).model_fields
        return tuple(name for name in fields if getattr(self, name) != fields[name].default)

    @property
    def of_responses(self) -> bool:
        """Return whether the advantage of a token depends on other tokens of its response."""
        return self.discount > 0.0 or self.baseline != "none" or self.standardize


WEIGHTS = ("beyond_cap", "importance_floor")
"""Keys of importance weights, which each estimator has."""

RATIOS = ("clip_low", "clip_high", *WEIGHTS)
"""Keys of the ratio of probabilities."""
