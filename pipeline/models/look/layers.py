"""Whether the tensors of a model are those that its settings speak of, as far as names tell. Pure.

Promises: a model whose tensors have other names passes; a size far beyond the weights is told
before anything of that size is made.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.models.look.settings import CONFIG, quantization_of, size_of
from pipeline.models.look.tensors import Tensor
from schemas.foreign import shown

EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings)\.weight$")
"""Names of the matrix that ids are looked up in."""

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,9})\.")

ELSEWHERE = re.compile(r"vision|visual|audio|image|encoder|per_layer|mtp")
"""Parts of names of what does not read text."""

OWN_WIDTH = ("word_embed_proj_dim", "embedding_size", "d_embed")
"""Settings of models whose embedding has a width of its own."""

OWN_LAYERS = ("block_configs", "num_decoder_layers", "num_nextn_predict_layers")
"""Settings of models that number layers otherwise, or leave some without weights."""


def layer_faults(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield where embedding and number of layers are not those of the settings."""
    texts = {name: one for name, one in tensors.items() if not ELSEWHERE.search(name)}
    named = sorted((name for name in texts if EMBEDDING.search(name)), key=len)
    if named and quantization_of(settings) is None:
        yield from _embedding_faults(named[0], texts[named[0]].shape, settings)
    numbers = {int(match[1]) for name in texts if (match := LAYER.search(name))}
    wanted = size_of(settings, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if numbers and wanted and max(numbers) + 1 < wanted and not _has(settings, OWN_LAYERS):
        yield (
            f"{CONFIG} speaks of {wanted} layers, but the weights are of {max(numbers) + 1}: they "
            "are of different models, or files are missing"
        )


def _embedding_faults(
    name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
) -> Iterator[str]:
    rows = size_of(settings, "vocab_size")
    width = size_of(settings, "hidden_size", "n_embd", "d_model")
    free = width is None or _has(settings, OWN_WIDTH)
    fits = len(shape) == 2 and rows in (None, shape[0]) and (free or shape[1] == width)
    if not fits:
        yield (
            f"tensor {shown(name)} has shape {list(shape)}, but {CONFIG} has vocab_size {rows} and "
            f"hidden size {width}: weights and settings are of different models"
        )


def _has(settings: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    text = settings.get("text_config")
    parts = [settings, text] if isinstance(text, Mapping) else [settings]
    return any(part.get(name) is not None for part in parts for name in names)
