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
    shapes: tuple[tuple[int, int], ...]
    """Rows and columns [B, L] of each group of rows of similar length."""
    token_G: Tensor
    """int64, the token at each place of all groups; a shorter row's last one fills it."""
    place_N: Tensor
    """int64, where each token stands among these places."""

    def to(self, device: Any) -> "PackedRows":
        """Return the same on a device."""
        moved = (one.to(device) for one in (self.position_ids_1N, self.token_G, self.place_N))
        position_ids_1N, token_G, place_N = moved
        return PackedRows(position_ids_1N, self.shapes, token_G, place_N)

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a decoder takes beside the ids."""
        return {"position_ids": self.position_ids_1N, "packed_rows": self}


def packed_rows(lengths: NDArray[Any]) -> PackedRows:
    """Return the layout of rows of some lengths that follow each other."""
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")
    shapes, groups, place_N, first = [], [], np.empty(int(lengths.sum()), dtype=np.int64), 0
    for rows in _alike(order, lengths):
        longest = int(lengths[rows[0]])
        column_BL = np.minimum(np.arange(longest), lengths[rows, None] - 1)
        shapes.append((len(rows), longest))
        groups.append((starts[rows, None] + column_BL).ravel())
        offsets = offsets_within(lengths[rows])
        tokens = np.repeat(starts[rows], lengths[rows]) + offsets
        place_N[tokens] = first + np.repeat(np.arange(len(rows)) * longest, lengths[rows]) + offsets
        first += len(rows) * longest
    return PackedRows(
        torch.from_numpy(offsets_within(lengths))[None],
        tuple(shapes),
        torch.from_numpy(np.concatenate(groups)),
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
    of_tokens = (states.transpose(1, 2)[0] for states in (query, key, value))
    of_groups = zip(*(_in_groups(states, packed_rows) for states in of_tokens), strict=True)
    parts = [
        plain(module, *of_rows, None, **{**settings, "is_causal": True})[0].flatten(0, 1)
        for of_rows in of_groups
    ]
    return _chosen(torch.cat(parts), packed_rows.place_N, packed_rows.token_G)[None], None


def _in_groups(states_NAD: Tensor, rows: PackedRows) -> list[Tensor]:
    """Return [B, A, L, D] states of the rows of each group."""
    states_GAD = _chosen(states_NAD, rows.token_G, rows.place_N)
    parts = torch.split(states_GAD, [count * longest for count, longest in rows.shapes])
    return [
        part.view(*shape, *part.shape[1:]).transpose(1, 2)
        for part, shape in zip(parts, rows.shapes, strict=True)
    ]


def _chosen(states: Tensor, index: Tensor, back: Tensor) -> Tensor:
    choose: Any = _Chosen.apply
    found: Tensor = choose(states, index, back)
    return found


class _Chosen(torch.autograd.Function):
    """Elements by their index; the gradient goes the way back, without a sum.

    A token that fills a shorter row stands at two places. Nothing reads what attention says at the
    second one, and no other token of the row looks that far: its gradient is 0, and none is lost.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, back = ctx.saved_tensors
        found = gradients[0].index_select(0, back)
        if len(back) > len(index):  # some places are those of tokens that fill
            fills = index.index_select(0, back) != torch.arange(len(back), device=back.device)
            found[fills] = 0.0
        return found, None, None


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
