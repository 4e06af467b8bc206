"""Whether a model predicts a token from those before it alone, as opd takes for granted.

Encoders, and decoders whose settings let attention look ahead, load like any causal language model:
as teachers they would know what follows. Torch is imported inside functions only.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.look.settings import CONFIG
from pipeline.models.own.reading import logprobs_of, settings_mark
from pipeline.models.source import ModelSource
from pipeline.scores.drift import gap_of
from pipeline.scores.tolerances import noise_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16
"""Tokens of two rows that begin with the same half."""

SHARE = 0.5
"""Share of the limit in 16 bits: of two rows of one length, the same half is computed alike."""

SETTINGS = ("is_causal", "is_decoder", "use_bidirectional_attention")
"""Settings of `config.json` with which attention looks ahead."""

_CAUSAL: set[str] = set()
"""Marks of the models that were tried in this process."""


def require_causality(model: "PreTrainedModel", source: ModelSource) -> None:
    """Make sure that what a model says of a token does not depend on the tokens after it.

    A process pays two short forwards for all models of the same settings.

    Args:
        model: the model, as it was loaded.
        source: where it is.

    Raises:
        ConfigError: it depends on them.
    """
    mark = settings_mark(model)
    if mark in _CAUSAL:
        return
    config = model.config.get_text_config()
    half = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS) // 2
    if half < 2:
        return
    rows_2T = np.random.default_rng(1).integers(0, int(config.vocab_size), (2, 2 * half))
    rows_2T[1, :half] = rows_2T[0, :half]
    one, other = (logprobs_of(model, row)[: half - 1] for row in rows_2T)
    gap, dtype = gap_of(one, other), str(model.dtype).removeprefix("torch.")
    share = 1.0 if dtype == "float32" else SHARE
    if passing := gap.beyond(share * noise_limit(dtype), dtype):
        raise source.blame(
            f"cannot use {source.words}: it looks ahead. What it says of {half - 1} tokens changes "
            f"by {gap.words}, with the {half} that follow them, where {passing}: its scores would "
            "be of tokens that it has read. Give a causal language model; where it is one, "
            f"correct {', '.join(SETTINGS)} in its {CONFIG}. Nothing was stored"
        )
    _CAUSAL.add(mark)
