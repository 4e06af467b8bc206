"""`[loss]`: the objective."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from schemas.config.objective.policy import RATIOS, PolicySection
from schemas.config.objective.weights import WeightsSection
from schemas.config.rewards.gates import LossGate
from schemas.config.section import Section, file_and_function, later
from schemas.scoresignal import SampleOf

DivergenceKind = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "gkd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
    "alpha",
]

LossKind = Literal[DivergenceKind, "policy_gradient", "sft"]

POLICY: LossKind = "policy_gradient"

HOW_TO_NAME = "a loss of your own is 'losses.py:function', a function of a file beside the TOML"


def _known(kind: str) -> str:
    """Return a kind by its own name: verl's name of the policy gradient is `opd`."""
    known = get_args(LossKind)
    if kind == "opd":
        return POLICY
    if kind not in known and file_and_function(kind) is None:
        raise ValueError(f"expected {', '.join(map(repr, known))}; {HOW_TO_NAME}")
    return kind


_Kind = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"anyOf": [{"enum": list(get_args(LossKind))}, {"type": "string"}]}),
]

SAMPLES: dict[str, tuple[SampleOf, ...]] = {
    "forward_kl": ("teacher",),
    "reverse_kl": ("student",),
    "jsd": ("student",),
    "gkd": ("student",),
    "skew_kl": ("teacher", "student"),
    "skew_reverse_kl": ("student",),
    "tvd": ("student",),
    "alpha": ("student", "teacher"),
    "policy_gradient": ("student",),
    "sft": (),
}
"""Whose samples keep the variance of a divergence's gradient bounded, the better one first.

A term of the sum is q·f'(q/p) over the chance of its id, which is near p or near q. Of the forward
KL it is p: under the student's chance p/q has heavy tails. Of the reverse KL it is q·log(q/p).
`suited` knows of values besides the kind.
"""


def suited(kind: str, *, beta: object = 0.5, alpha: object = 0.5) -> tuple[SampleOf, ...]:
    """Return whose samples suit a divergence with these values, the better one first.

    A JSD of β = 0 is the forward KL. The α-divergence's terms are p^α·q^(1−α): over q their squares
    are expected to be at most 1 up to α = ½, over p from there.
    """
    if kind in ("jsd", "gkd") and beta == 0.0:
        return SAMPLES["forward_kl"]
    if kind == "alpha" and isinstance(alpha, float) and alpha != 0.5:
        return ("student",) if alpha < 0.5 else ("teacher",)
    return SAMPLES.get(kind, ())


class LossConfig(Section):
    """`[loss]`: the objective over teacher support, tail and sample."""

    kind: _Kind
    """`forward_kl` = KL(teacher‖student), `reverse_kl` = KL(student‖teacher), `jsd` or `gkd` =
    generalised Jensen-Shannon, `skew_kl` and `skew_reverse_kl` = the KLs to a mixture with
    the other side, `tvd` = total variation, `alpha` = the α-divergence between both KLs,
    `policy_gradient` or `opd` = sampled token, advantage log p_teacher − log q_student; `sft` =
    −log q_student of what the teacher has sampled (`opd rollout --teacher`), to compare with; or
    `losses.py:function` = a function of your own, in a file beside the TOML."""
    estimator: Literal["auto", "bucket", "sampled"] = later("auto")
    """`bucket` sums over the support and one bucket for the rest: no noise, but a bias that no
    number of positions mends. `sampled` adds what a sample says of the rest: a stored threshold
    sample, or the sampled token. `auto` is `sampled` where a sample suits the divergence."""
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = later(1.0)
    """Temperature of both sides in the divergence. Other than 1 it needs its log Z among
    `score.temperatures`; below 1, scores of a peaked teacher may do without."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """`jsd` only: 0 is the forward KL, 1 the reverse KL."""
    normalized: bool = later(False)
    """`jsd` only: divide by β(1 − β), which makes both KLs the limits at its ends."""
    skew: Annotated[float, Field(gt=0.0, lt=1.0)] = later(0.1)
    """`skew_kl`, `skew_reverse_kl` only: share of the first distribution in the mixture."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = later(0.5)
    """`alpha` only: near 1 it is the forward KL, near 0 the reverse KL, at 0.5 symmetric."""
    importance: Literal["none", "token", "geometric", "sequence"] = "token"
    """`policy_gradient` only: weight by current over sampling probability, of the token, by its
    geometric mean over the response, or of the whole response; `none` does not."""
    importance_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """`policy_gradient` and samples of the student: largest current over sampling probability."""
    advantage_clip: Annotated[float, Field(gt=0.0)] | None = None
    """`policy_gradient` only: clip the advantage to ± this many nats."""
    policy: PolicySection = later(PolicySection())
    """`policy_gradient` only: advantages, ratios and estimators."""
    weights: WeightsSection = later(WeightsSection())
    """Which tokens are learned from, and how much."""
    teacher_logprob_floor: Annotated[float, Field(lt=0.0)] = -30.0
    """Floor of the teacher's log-probability in student-weighted terms, nats; hits are counted."""

    rl_weight: Annotated[float, Field(ge=0.0, le=1e6)] = later(0.0)
    """Weight of a second term: the clipped policy gradient of `[reward]`, by the advantage of each
    response inside its prompt's group. 0 leaves it out."""
    distill_weight: Annotated[float, Field(ge=0.0, le=1e6)] = later(1.0)
    """Weight of the distillation loss. 0 leaves rewards alone: GRPO."""
    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] = later(0.2)
    """`rl_weight` only: how far below 1 the ratio of probabilities counts, for bad responses."""
    clip_high: Annotated[float, Field(gt=0.0, le=1e6)] = later(0.2)
    """`rl_weight` only: how far above 1 the ratio of probabilities counts, for good responses."""
    gate: LossGate | None = later(None)
    """Where distillation counts, and how much at which step; without it everywhere."""

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if not self.rl_weight and not self.distill_weight:
            raise ValueError("rl_weight and distill_weight are both 0: there is nothing to learn")
        if self.kind == "sft" and self.weights.domain is not None:
            raise ValueError("weights.domain goes by a teacher's scores, and kind = 'sft' has none")
        if self.kind == "sft" and (self.rl_weight or self.gate is not None):
            raise ValueError(
                "kind = 'sft' learns what a teacher has sampled, where rl_weight and gate have no "
                "meaning: take them out"
            )
        if self.gate is not None:
            self._check_gate(self.gate)
        if self.estimator == "sampled" and not suited(self.kind):
            raise ValueError(
                f"estimator = 'sampled' is not for kind = {self.kind!r}, whose sums over a sample "
                "have no bounded variance or need none: leave estimator out"
            )
        self._check_policy()
        if self.temperature != 1.0:
            self._check_temperature()
        if self.normalized and self.kind in ("jsd", "gkd") and self.beta in (0.0, 1.0):
            raise ValueError(f"normalized divides by β(1 − β), which is 0 at beta = {self.beta:g}")
        return self

    def _check_policy(self) -> None:
        ratios = [name for name in self.policy.changed if name in RATIOS]
        if self.kind != POLICY:
            return
        if self.importance == "none" and ratios:
            raise ValueError(
                f"policy.{ratios[0]} is about a ratio of probabilities, and importance = 'none' "
                "has none: write importance = 'token'"
            )
        if self.policy.importance_floor > self.importance_cap:
            raise ValueError("policy.importance_floor is above importance_cap: no weight is left")
        if self.estimator == "sampled" and self._of_one_token:
            raise ValueError(
                f"estimator = 'sampled' sums over several ids of a position, and "
                f"{', '.join(self._of_one_token)} is about the sampled token alone: leave one out"
            )

    @property
    def _of_one_token(self) -> list[str]:
        """Return the keys that have a meaning for the sampled token alone."""
        of_policy = [f"policy.{name}" for name in self.policy.changed if name != "mix"]
        return of_policy + (["importance"] if self.importance in ("geometric", "sequence") else [])

    @property
    def of_responses(self) -> bool:
        """Return whether a token's loss depends on what the student says of other tokens."""
        by_ratio = self.importance in ("geometric", "sequence")
        by_policy = self.kind == POLICY and (by_ratio or self.policy.of_responses)
        return by_policy or self.weights.of_student

    @property
    def is_planned(self) -> bool:
        """Return whether tokens have a plan before their losses are computed."""
        return self.of_responses or self.weights.changed

    def _check_gate(self, gate: LossGate) -> None:
        if not self.distill_weight:
            raise ValueError("gate is about distillation, and distill_weight is 0: take it out")
        if gate.compress_nats is not None and self.kind != "policy_gradient":
            raise ValueError(
                f"gate.compress_nats is for the advantages of kind = 'policy_gradient', not for "
                f"{self.kind!r}: take it out"
            )

    def _check_temperature(self) -> None:
        if self.kind in (POLICY, "sft"):
            raise ValueError(
                f"temperature = {self.temperature:g} is not for kind = {self.kind!r}, whose "
                "tokens were sampled from one distribution: leave temperature out"
            )
        if self.estimator == "sampled":
            raise ValueError(
                f"estimator = 'sampled' is not for temperature = {self.temperature:g}: samples "
                "were drawn at temperature 1, so that their sums have heavy tails at others. Leave "
                "estimator out"
            )

    @property
    def samples(self) -> tuple[SampleOf, ...]:
        """Whose samples this objective may use, the better one first; none with `bucket`."""
        if self.estimator == "bucket" or self.temperature != 1.0:
            return ()
        if self.kind == POLICY and self._of_one_token:
            return ()
        return suited(self.kind, beta=self.beta, alpha=self.alpha)

    @property
    def takes_token(self) -> bool:
        """Return whether the sampled token stands for a sample where none is stored."""
        needs_asking = self.kind == POLICY  # which takes it alone
        return "student" in self.samples and (self.estimator == "sampled" or not needs_asking)

    @property
    def own(self) -> tuple[str, str] | None:
        """File and function of a loss of the user's own; None for one of opd's."""
        return file_and_function(self.kind) if self.kind not in SAMPLES else None
