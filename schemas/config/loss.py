"""`[loss]`: the objective."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.config.section import Section

LossKind = Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"]


class LossConfig(Section):
    """`[loss]`: the objective over teacher support and tail bucket."""

    kind: LossKind
    """`forward_kl` = KL(teacher‖student), `reverse_kl` = KL(student‖teacher), `jsd` = generalised
    Jensen-Shannon, `policy_gradient` = sampled token, advantage log p_teacher − log q_student."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """`jsd` only: 0 is the forward KL, 1 the reverse KL."""
    importance: Literal["none", "token"] = "token"
    """`policy_gradient` only: `token` weights by current over sampling probability, `none` not."""
    importance_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """`policy_gradient` only: largest importance weight."""
    advantage_clip: Annotated[float, Field(gt=0.0)] | None = None
    """`policy_gradient` only: clip the advantage to ± this many nats."""
    teacher_logprob_floor: Annotated[float, Field(lt=0.0)] = -30.0
    """Floor of the teacher's log-probability in student-weighted terms, nats; hits are counted."""
