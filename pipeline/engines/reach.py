"""How long the rows of a trial are: a run's longest row, wherever a forward of that is cheap.

A row far beyond a window may be computed otherwise than all shorter ones. Promises: each border
that a model's settings name is crossed, or it is told that it is not. Must not: load a model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeGuard

from pipeline.engines.start import Start
from pipeline.models.look.jsonfiles import Unusable
from pipeline.models.look.tensors import read_header, weight_files
from pipeline.models.source import ModelSource, local_folder, whole_settings
from schemas.config.engines import EngineSection

BORDERS = (
    *("sliding_window", "sliding_window_size", "attention_window_size", "window_size"),
    *("keep_window_size", "attention_chunk_size", "chunk_size", "mamba_chunk_size"),
    *("original_max_position_embeddings", "floor_scale", "index_topk"),
)
"""Settings that name such a length."""

CPU_COST = 5e9
"""Multiplications that one forward of a trial's longest row may take for each thread of a CPU: half
a second. A trial has about four such forwards."""

GPU_BYTES = 16 << 30
"""Memory that `eager` attention may take for one row on a GPU, where time does not matter, if half
of what is free is as much."""

SCORE_COST, SCORE_BYTES = 300, 16
"""Multiplications that take as long as what `eager` does to one score of a head, and its bytes."""

SHORT_ROW = 40
"""Tokens of the longest of the short rows that every trial has."""

LEAST = 64
"""Tokens of a row that is read in two ways, whatever that costs."""

PAST = 8
"""Tokens by which a row goes beyond a border."""

NEAR, NEAR_DRAWN, NEAR_REFERENCE = 512, 700, 256
"""Up to where rows go beyond a border, whatever that costs: those that two implementations of
transformers read, those that are drawn, and those that an engine and transformers read."""


def named_borders(settings: Any) -> dict[int, str]:
    """Return the lengths that the settings of a text model name, and those of its rotary scaling.

    Each once, in tokens, the shortest first, with a setting that names it.
    """
    found: dict[int, str] = {}
    for name, tokens in _named(settings):
        found.setdefault(tokens, name)
    return dict(sorted(found.items()))


def _named(settings: Any) -> Iterator[tuple[str, int]]:
    scaling = getattr(settings, "rope_parameters", None) or {}
    kinds = [scaling, *(part for part in scaling.values() if isinstance(part, dict))]
    for name in BORDERS:
        inner = [kind[name] for kind in kinds if _is_size(kind.get(name))]
        yield from ((name, size) for size in (*_sizes(settings, name), *inner))


def _sizes(settings: Any, name: str) -> list[int]:
    """Return what a setting says: one number, one of each layer where layers differ, or none."""
    try:
        found = [getattr(settings, name, None)]
    except RuntimeError:  # transformers' own, where layers differ
        found = [getattr(layer, name, None) for layer in settings.per_layer_config]
    return [size for size in found if _is_size(size)]


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Reach:
    """How far the rows of an engine's trial go."""

    allowed: int | None
    """Tokens of the longest row that may be asked for; None where nobody has said."""
    tried: int
    """Tokens of the longest row that is drawn, or scored."""
    compared: int
    """Tokens of the longest row that is read in two ways, where there are two."""
    borders: tuple[tuple[int, str], ...]
    """Borders that rows may cross, and none that is compared does: tokens and settings."""

    def with_rows(self, lengths: Iterable[int]) -> "Reach":
        """Return the reach of a trial that has rows of such lengths, too."""
        return replace(self, tried=max([self.tried, *lengths]))

    def words(self) -> str:
        """Return what is not tried; empty where all is."""
        found = []
        if self.allowed is not None and self.tried < self.allowed:
            found.append(
                f"rows above {self.tried} tokens are not tried, and {self.allowed} are allowed"
            )
        if self.borders:
            named = ", ".join(f"{name} = {tokens}" for tokens, name in self.borders)
            found.append(
                f"nothing is read in two ways beyond {self.compared} tokens, where config.json "
                f"has {named}"
            )
        return "; ".join(found)

    def figures(self) -> dict[str, Any]:
        """Return it as records have it."""
        return {
            "tried_tokens": self.tried,
            "allowed_tokens": self.allowed,
            "compared_tokens": self.compared,
            "borders_beyond": {name: tokens for tokens, name in self.borders},
        }


def reach_of(start: Start) -> Reach:
    """Return how far the rows of the trials of an engine go.

    Args:
        start: what the engine starts with.

    Raises:
        ConfigError: the model's settings cannot be read.
    """
    settings, section = whole_settings(start.source).get_text_config(), start.section
    held, asked = _sizes(settings, "max_position_embeddings"), start.max_tokens
    allowed = min([*held, *([] if asked is None else [asked])], default=NEAR)
    on_hf = section.engine == "hf"
    room = allowed if on_hf or allowed not in held else allowed - 1  # vLLM scores what goes on
    borders, cost = named_borders(settings), _cost_of(settings, start)
    longest = partial(_longest, room, borders=borders, whole=asked is not None)
    elsewhere, cpu = _is_elsewhere(section), _is_cpu(section)
    tried = longest(
        cost.is_cheap if cpu and not elsewhere else _always,
        near=NEAR_DRAWN if start.use == "sample" else 0,
        least=SHORT_ROW,
    )
    compared = longest(
        cost.is_small if on_hf and not cpu else partial(cost.is_cheap, eager=True),
        near=NEAR if on_hf else NEAR_REFERENCE,
        least=LEAST,
    )
    compared = 0 if elsewhere else max(2, compared)
    beyond = tuple((n, name) for n, name in borders.items() if compared <= n < room)
    return Reach(None if asked is None else allowed, tried, compared, beyond)


def _longest(
    room: int,
    fits: Callable[[int], bool],
    *,
    borders: Iterable[int],
    whole: bool,
    near: int,
    least: int,
) -> int:
    """Return the tokens of the longest row: all that there is room for, or beyond a border.

    Args:
        room: tokens of the longest row that is allowed.
        fits: whether a row of so many tokens is cheap.
        borders: lengths to go beyond.
        whole: whether a row of all that there is room for is wanted.
        near: up to where a row goes beyond a border, whatever it costs.
        least: tokens that a row has, whatever it costs.
    """
    if whole and fits(room):
        return room
    beyond = [border + PAST for border in borders]
    reached = [n for n in beyond if n <= room and (n <= near or fits(n))]
    return min(room, max([least, *reached]))


@dataclass(frozen=True)
class _Cost:
    """What a forward of one row takes, and whether that is little."""

    values: int | None
    """Values in the files of the weights, each of which meets each token; None if not here."""
    layers: int
    heads: int
    width: int
    """Of a head."""
    device: str

    def is_cheap(self, tokens: int, *, eager: bool = False) -> bool:
        """Return whether a row may be read on a CPU, by `eager` attention too."""
        import torch

        if self.values is None:
            return False
        score = 2 * self.width + (SCORE_COST if eager else 0)
        cost = tokens * self.values + tokens * tokens * self.layers * self.heads * score
        return cost <= CPU_COST * torch.get_num_threads()

    def is_small(self, tokens: int) -> bool:
        """Return whether `eager` attention may read a row on a GPU."""
        needed = tokens * tokens * self.heads * SCORE_BYTES
        return needed <= min(GPU_BYTES, _free_bytes(self.device) // 2)


def _always(_: int) -> bool:
    return True


def _free_bytes(device: str) -> int:
    """Return the free memory of a GPU, if it is awake; to wake it would take some."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call] # torch's gap
        return 2 * GPU_BYTES
    named = device if device.startswith("cuda") else None
    return int(torch.cuda.mem_get_info(named)[0])


def _cost_of(settings: Any, start: Start) -> _Cost:
    layers, heads, width, hidden = (
        max(_sizes(settings, name), default=1)
        for name in ("num_hidden_layers", "num_attention_heads", "head_dim", "hidden_size")
    )
    width = max(width, hidden // heads)
    return _Cost(_values(start.source), layers, heads, width, start.section.device)


def _values(source: ModelSource) -> int | None:
    """Return how many values the files of a model's weights hold, as their headers say."""
    folder = local_folder(source.whole)
    if folder is None:
        return None
    try:
        headers = [read_header(folder / name) for name in weight_files(folder)]
    except Unusable:
        return None
    return sum(prod(tensor.shape) for header in headers for tensor in header.values())


def _is_elsewhere(section: EngineSection) -> bool:
    """Return whether servers that others have started run the model."""
    return section.engine == "server" and bool(section.server.urls)


def _is_cpu(section: EngineSection) -> bool:
    import torch

    if section.engine == "hf" and section.device != "auto":
        return section.device == "cpu"
    return not torch.cuda.is_available()
