"""How vLLM gets an adapter: applied by vLLM itself, or merged into a copy of its base.

vLLM applies plain low-rank adapters beside linear layers. Others are merged into a temporary
folder, which is as exact and takes the room of the base for as long as the engine is open.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engines.start import Note, Start
from pipeline.models.accounting import require_read
from pipeline.models.adapters import adapted_layers, largest_rank, why_not_plain
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from pipeline.store.disk.scratch import scratch
from schemas.errors import ConfigError

T = TypeVar("T")

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can be made ready for; an adapter may have fewer."""

WITHOUT_ADAPTERS = "does not support LoRA"
"""What vLLM says of a model whose class takes no adapters."""

NAME = "adapter"
"""What a server of our own calls the adapter."""


@dataclass(frozen=True)
class Held:
    """What vLLM holds of a model."""

    source: ModelSource
    """A whole model."""
    adapter: str | None = None
    """Folder of the adapter that vLLM applies to it, if any."""
    rank: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """Return vLLM's settings for the adapter."""
        if self.adapter is None:
            return {}
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": self.rank,
            # without the list, vLLM takes the head for adapted too, and computes logits for as many
            # positions at once as it samples at, which is not what scores need
            "lora_target_modules": adapted_layers(Path(self.adapter)),
        }

    @property
    def module(self) -> str | None:
        """Return the adapter as vLLM's server is told of it, or None where there is none."""
        return None if self.adapter is None else json.dumps({"name": NAME, "path": self.adapter})


def start_with(
    start: Start, begin: Callable[[Held], T], *, note: Note
) -> tuple[T, Held, ExitStack]:
    """Return what beginning vLLM with a model gives, what it holds, and what to close at its end.

    Args:
        start: names the model, whole or an adapter, and the number format that one is merged in.
        begin: starts vLLM.
        note: told where an adapter is merged, and why.

    Raises:
        ConfigError: tensors of the files would not be read, the adapter is damaged or does not fit
            its base, or vLLM cannot start.
    """
    source = start.source
    require_read(source)
    with ExitStack() as stack:
        if source.base is None:
            held = Held(source)
            return begin(held), held, stack.pop_all()
        folder = Path(source.location)
        reason = _why_merged(folder)
        if reason is None:
            try:
                held = unmerged(source)
                return begin(held), held, stack.pop_all()
            except ConfigError as error:
                if WITHOUT_ADAPTERS not in str(error):
                    raise
                reason = "its class of this model takes none"
        note(
            f"vLLM does not apply the adapter {folder} itself ({reason}): it is merged into a "
            "temporary copy of its base"
        )
        merged = stack.enter_context(scratch("merged"))
        _save_merged(source, start.dtype, merged)
        held = Held(ModelSource(str(merged), None, source.trust_remote_code))
        return begin(held), held, stack.pop_all()


def unmerged(source: ModelSource) -> Held:
    """Return what vLLM holds of a model where it applies the adapter itself, if there is one.

    Raises:
        ConfigError: it does not apply such an adapter.
    """
    if source.base is None:
        return Held(source)
    folder = Path(source.location)
    if reason := _why_merged(folder):
        raise ConfigError(f"vLLM does not apply the adapter {folder} itself: {reason}")
    rank = next(rank for rank in RANKS if rank >= largest_rank(folder))
    return Held(source.base, source.location, rank)


def _why_merged(folder: Path) -> str | None:
    """Return why vLLM does not apply an adapter itself, or None where it does."""
    if reason := why_not_plain(folder):
        return reason
    rank = largest_rank(folder)
    return f"rank {rank} is above {RANKS[-1]}" if rank > RANKS[-1] else None


def _save_merged(source: ModelSource, dtype: str, folder: Path) -> None:
    try:
        load_model(source, dtype=dtype, device="cpu").save_pretrained(folder)
    except OSError as error:
        raise ConfigError(
            f"the adapter {source.location} cannot be merged into {folder}: {error}. Set TMPDIR to "
            "a folder with room for its base"
        ) from error
