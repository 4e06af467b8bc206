"""The gradient over all ids, with the teacher at hand: what every estimator is measured against.

Promises: nothing is stored. The teacher is loaded as the learner loads models, reads the rows once,
and only its head and last hidden states stay. Shapes: T positions, H hidden, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.models.head import Head
from pipeline.models.loading import load_model
from pipeline.models.source import find_model
from pipeline.objectives.check.identities import position_gradients
from pipeline.objectives.targets import Targets
from pipeline.runs.run import Run
from schemas.config.loss import POLICY, LossConfig
from schemas.errors import ConfigError


@dataclass(frozen=True, eq=False)
class TeacherAtHand:
    """A teacher's last hidden states at some positions, and its head."""

    hidden_TH: Tensor
    head: Head

    def logprobs(self, some: slice, vocab_size: int) -> Tensor:
        """Return the log-probabilities of the student's ids at some positions, float32 [N, V].

        Ids that the teacher lacks have none; those that the student lacks leave the rest as it is.
        """
        logits_NV = self.head.logits(self.hidden_TH[some]).float()
        known_NV = logits_NV.log_softmax(-1)[:, :vocab_size]
        lacking = vocab_size - known_NV.shape[1]
        return torch.nn.functional.pad(known_NV, (0, lacking), value=-torch.inf)


def teacher_of(scored: Collection[str]) -> str:
    """Return the one teacher of those who scored a round.

    Raises:
        ConfigError: there are several.
    """
    if len(scored) != 1:
        raise ConfigError(
            f"--with-teacher measures rows of one teacher, and the round has {', '.join(scored)}: "
            "leave it out"
        )
    return next(iter(scored))


def load_teacher(run: Run, name: str, device: str) -> Any:
    """Return a teacher's model.

    Raises:
        ConfigError: it is not there, or cannot be loaded.
    """
    section = run.config.teachers[name]
    source = find_model(run.place, section, f"teachers.{name}")
    return load_model(source, dtype=section.dtype, device=device)


def whole_loss(loss: LossConfig) -> LossConfig | None:
    """Return the objective over all ids whose gradient a form is to have; None where none is known.

    That of the policy gradient, without keys of its own, is the reverse KL's.
    """
    if loss.own is not None or loss.is_planned or loss.temperature != 1.0 or loss.rl_weight:
        return None
    words: dict[str, Any] = {"estimator": "bucket"}
    if loss.kind == POLICY:
        plain = LossConfig(kind=POLICY)
        if loss.policy != plain.policy or loss.advantage_clip is not None:
            return None
        kept = ("teacher_logprob_floor", "distill_weight")
        words |= {"kind": "reverse_kl", **{name: getattr(loss, name) for name in kept}}
        return LossConfig.model_validate(words)
    return None if loss.kind == "sft" else LossConfig.model_validate({**loss.model_dump(), **words})


def whole_gradients(
    hidden_TH: Tensor,
    head: Head,
    targets: Targets,
    teacher: TeacherAtHand,
    loss: LossConfig,
    *,
    chunk_tokens: int,
) -> Tensor:
    """Return the gradient of each position's loss over all ids, by its hidden state.

    Args:
        hidden_TH: the student's last hidden states.
        head: its head.
        targets: teacher side of the same positions, of which weights are taken.
        teacher: the teacher at these positions.
        loss: of `whole_loss`.
        chunk_tokens: most positions whose logits exist at once.
    """
    vocab_size, parts = head.weight_VH.shape[0], []
    for at in range(0, len(hidden_TH), chunk_tokens):
        some = slice(at, at + chunk_tokens)
        whole = _over_all(targets[some], teacher.logprobs(some, vocab_size))
        parts.append(
            position_gradients(hidden_TH[some], head, whole, loss, chunk_tokens=chunk_tokens)
        )
    return torch.cat(parts)


def _over_all(targets: Targets, logprobs_NV: Tensor) -> Targets:
    """Return targets whose support is the whole vocabulary."""
    rows, size = logprobs_NV.shape
    mass_N1 = logprobs_NV.logsumexp(-1, keepdim=True)
    return replace(
        targets,
        ids_TS=torch.arange(size, device=logprobs_NV.device).expand(rows, size).contiguous(),
        logprobs_TS=logprobs_NV - mass_N1,
        valid_TS=torch.ones_like(logprobs_NV, dtype=torch.bool),
        tail_TB=torch.full_like(mass_N1, -torch.inf),
        sample=None,
    )
