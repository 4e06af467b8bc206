"""Rows end to end in one sequence, without padding: attention that knows where each row ends.

Promises: a row has the numbers that it has alone, which is seen on a probe before it is relied on;
a model whose tokens meet anywhere but in plain attention is never packed.
Shapes: N tokens of all rows, B rows of a group, L tokens of its longest, A heads, D their size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.head import decoder_of, head_of
from pipeline.models.own.attention import SDPA
from pipeline.scores.tolerances import noise_limit
from schemas.ragged import offsets_within

PACKED = "opd_packed"
"""What transformers calls this attention."""

FULL = "full_attention"

EVEN = 1.25
"""How much longer a row may be than another that attention reads beside it."""

PROBE = (7, 3, 5)
"""Tokens of the rows on which packing is tried."""

FOLLOWS = ("longrope", "dynamic")
"""Kinds of rotary scaling that change a row by its neighbours."""

FOREIGN = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What the code of models raises where it does not understand what it is given."""

ALTERS = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")
"""What models give attention that changes what a token sees, or how."""


MASKS = {"local_size": "a window, or chunks", "use_vmap": "a mask that is more than causal"}
"""What transformers makes masks with that `attend` does not know, and what that means."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Where rows stand in one sequence: what attention needs of them, and their positions."""

    position_ids_1N: Tensor
    groups: tuple[Tensor, ...]
    """int64 [B, L] tokens of rows of similar length; a shorter row's last one fills it."""
    place_N: Tensor
    """Where each token stands among those of all groups."""

    def to(self, device: Any) -> "PackedRows":
        """Return the same on a device."""
        groups = tuple(group.to(device) for group in self.groups)
        return PackedRows(self.position_ids_1N.to(device), groups, self.place_N.to(device))

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a decoder takes beside the ids."""
        return {"position_ids": self.position_ids_1N, "packed_rows": self}


def packed_rows(lengths: NDArray[Any]) -> PackedRows:
    """Return the layout of rows of some lengths that follow each other."""
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")
    groups, place_N, first = [], np.empty(int(lengths.sum()), dtype=np.int64), 0
    for rows in _alike(order, lengths):
        longest = int(lengths[rows[0]])
        column_BL = np.minimum(np.arange(longest), lengths[rows, None] - 1)
        groups.append(starts[rows, None] + column_BL)
        offsets = offsets_within(lengths[rows])
        tokens = np.repeat(starts[rows], lengths[rows]) + offsets
        place_N[tokens] = first + np.repeat(np.arange(len(rows)) * longest, lengths[rows]) + offsets
        first += len(rows) * longest
    return PackedRows(
        torch.from_numpy(offsets_within(lengths))[None],
        tuple(torch.from_numpy(group) for group in groups),
        torch.from_numpy(place_N),
    )


def _alike(order: NDArray[Any], lengths: NDArray[Any]) -> Sequence[NDArray[Any]]:
    """Return rows, which come longest first, in groups of similar length."""
    groups, first = [], 0
    while first < len(order):
        near = lengths[order[first:]] * EVEN >= lengths[order[first]]
        end = first + int(near.sum())
        groups.append(order[first:end])
        first = end
    return groups


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Return attention of packed rows, each to itself; without rows, transformers' own.

    Raises:
        ValueError: the layer wants more than plain causal attention.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain: Any = sdpa_attention_forward
    if packed_rows is None:
        return plain(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return] # its gap
    if found := [name for name in ALTERS if settings.get(name) is not None]:
        raise ValueError(f"attention with {found[0]} is not packed")
    if attention_mask is not None:
        raise ValueError("attention with a mask of the model's own is not packed")
    of_tokens = [states.transpose(1, 2)[0] for states in (query, key, value)]
    parts = []
    for tokens_BL in packed_rows.groups:
        of_rows = [_rows_of(states, tokens_BL) for states in of_tokens]
        found_BLAD = plain(module, *of_rows, None, **{**settings, "is_causal": True})[0]
        parts.append(found_BLAD.flatten(0, 1))
    return torch.cat(parts).index_select(0, packed_rows.place_N)[None], None


def _rows_of(states_NAD: Tensor, tokens_BL: Tensor) -> Tensor:
    """Return [B, A, L, D] states of the tokens of rows."""
    flat = states_NAD.index_select(0, tokens_BL.flatten())
    return flat.view(*tokens_BL.shape, *states_NAD.shape[1:]).transpose(1, 2)


def _mask(*args: Any, **settings: Any) -> Any:
    """Return the mask of padded rows; packed ones have none, for `attend` reads them apart.

    Raises:
        ValueError: packed rows would need one: a window may be longer than the rows of a probe.
    """
    from transformers.masking_utils import sdpa_mask

    if settings.get("attention_mask") is not None:
        return sdpa_mask(*args, **settings)
    if found := [words for name, words in MASKS.items() if settings.get(name)]:
        raise ValueError(f"its attention has {found[0]}")
    return None


@torch.no_grad()
def pack_rows(model: Any) -> str | None:
    """Have a model take packed rows beside padded ones; return why it cannot where it does not.

    Args:
        model: a causal language model, whole, in the mode in which it learns.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    if kinds != {FULL}:
        return f"it has layers of {', '.join(sorted(kinds - {FULL}))}"
    rotary = str(getattr(config, "rope_parameters", None))
    if found := [kind for kind in FOLLOWS if repr(kind) in rotary]:
        return f"its rotary scaling {found[0]!r} follows the longest row beside it"
    if model.config._attn_implementation != SDPA:
        return f"its attention is {model.config._attn_implementation}, not {SDPA}"
    can_change: Any = getattr(model, "_can_set_attn_implementation", lambda: False)
    if not can_change():
        return "its attention is its own code"
    layers: list[bool] = []

    def watched(*args: Any, **settings: Any) -> tuple[Tensor, None]:
        layers.append(settings.get("packed_rows") is not None)
        return attend(*args, **settings)

    AttentionInterface.register(PACKED, watched)
    AttentionMaskInterface.register(PACKED, _mask)
    why: str | None
    try:
        with _without_dropout(model):
            alone = _alone(model)
            model.set_attn_implementation(PACKED)
            apart = float((_together(model) - alone).abs().max())
        why = None if apart <= noise_limit("float32") else f"a packed row is {apart:.2g} nats off"
    except FOREIGN as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    AttentionInterface.register(PACKED, attend)
    if why is None and layers != [True] * getattr(config, "num_hidden_layers", -1):
        why = "not every layer's attention is told where rows end"
    if why is not None:
        model.set_attn_implementation(SDPA)
    return why


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """Have a model say the same each time for the length of a block."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


def _alone(model: Any) -> Tensor:
    """Return the log-probabilities after each token of the probe's rows, each row by itself."""
    rows = torch.split(_probe(model), list(PROBE))
    return torch.cat([_logprobs(model, row[None], {}) for row in rows])


def _together(model: Any) -> Tensor:
    layout = packed_rows(np.array(PROBE)).to(model.device)
    return _logprobs(model, _probe(model)[None], layout.inputs)


def _probe(model: Any) -> Tensor:
    ids = torch.arange(sum(PROBE), device=model.device) * 7 + 1
    return ids % int(head_of(model).weight_VH.shape[0])


def _logprobs(model: Any, ids_BT: Tensor, inputs: dict[str, Any]) -> Tensor:
    hidden = decoder_of(model)(input_ids=ids_BT, use_cache=False, **inputs).last_hidden_state
    return head_of(model).logits(hidden)[0].log_softmax(-1)
