"""What DeepSpeed wraps: the student that learns, and the loss on its hidden states.

Must not: hold [tokens, vocabulary] logits at once. Shapes: B rows, T tokens, H hidden, V
vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.models.head import check_head, decoder_of, head_of
from pipeline.models.loading import load_model
from pipeline.models.lora import attach_adapter
from pipeline.models.own.learning import (
    LearningMode,
    check_quiet,
    learning_mode,
    recompute_activations,
)
from pipeline.models.own.packing import PackedRows, pack_rows
from pipeline.models.source import ModelSource
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.errors import ConfigError

Layout = Tensor | PackedRows
"""How rows stand in the ids: the mask [B, T] of padded rows, or where packed ones begin."""


class DistillationModule(nn.Module):
    """The student and the loss on its hidden states: what DeepSpeed wraps."""

    def __init__(
        self, student: Any, mode: LearningMode, loss: LossConfig, *, chunk_tokens: int
    ) -> None:
        """Hold the student; it keeps its own parameters."""
        import deepspeed

        super().__init__()
        self._walks: dict[tuple[str, bool, bool], list[tuple[str, nn.Parameter]]] = {}
        self.student, self._mode = student, mode
        self.loss, self._chunk_tokens = loss, chunk_tokens
        self.register_state_dict_post_hook(_without_frozen)  # type: ignore[no-untyped-call] # torch's gap
        head = head_of(student)  # not this module's own: ZeRO-3 must gather it for our forward
        for tensor in (head.weight_VH, head.bias_V):
            if tensor is not None:
                deepspeed.zero.register_external_parameter(self, tensor)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Return what any module does, from one walk: DeepSpeed asks several times at each step."""
        asked = (prefix, recurse, remove_duplicate)
        if asked not in self._walks:
            self._walks[asked] = list(super().named_parameters(*asked))
        return iter(self._walks[asked])

    def train(self, mode: bool = True) -> Self:
        """Set the training mode: the student's is what `LearningMode` makes of it."""
        self.training = mode
        self._mode.set(self.student, learns=mode)
        return self

    def forward(
        self, ids_BT: Tensor, layout: Layout, states_2T: Tensor, targets: Targets, scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scaled loss of a micro-batch and its summed diagnostics."""
        inputs = layout.inputs if isinstance(layout, PackedRows) else {"attention_mask": layout}
        hidden = decoder_of(self.student)(input_ids=ids_BT, use_cache=False, **inputs)
        hidden_TH = hidden.last_hidden_state[states_2T[0], states_2T[1]]
        return head_loss(
            hidden_TH,
            head_of(self.student),
            targets,
            self.loss,
            chunk_tokens=self._chunk_tokens,
            scale=scale,
        )


def load_student(
    source: ModelSource, train: TrainSection, device: str
) -> tuple[Any, LearningMode, str | None]:
    """Return the student as it learns, its mode, and why its rows are padded, where they are.

    All its weights learn, or its adapter's.

    Raises:
        ConfigError: it cannot be loaded, its head is not understood, its adapter does not fit, it
            does not compute in training what it computes when it samples, or its rows are to be
            packed and cannot be.
    """
    lora = train.lora
    whole = source if lora is None else source.whole
    # what is frozen has no float32 masters, so it is loaded as it will be computed with
    dtype = "float32" if lora is None else train.dtype
    student = load_model(whole, dtype=dtype, device=device)
    probe = torch.arange(4, device=device)[None]
    check_head(student, head_of(student), probe)
    if lora is not None:
        attach_adapter(student, Path(source.location), dropout=lora.dropout)
    mode = learning_mode(student, probe, model_dropout=train.model_dropout)
    if train.activation_checkpointing:
        recompute_activations(student, mode)
    check_quiet(student, mode, probe)
    padded = "train.packing = 'off'" if train.packing == "off" else pack_rows(student)
    if padded is not None and train.packing == "on":
        raise ConfigError(
            f"train.packing = 'on', but rows of {type(student).__name__} cannot be packed: "
            f"{padded}. Leave it at 'auto'"
        )
    return student, mode, padded


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave out of a state what does not learn; DeepSpeed would keep a head that is tied."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(f"{prefix}{name}", None)
