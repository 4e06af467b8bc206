"""Mixtures of experts, of which transformers has several implementations: which one computes them.

Its default, `grouped_mm`, sorts tokens by expert; `eager` is what a class itself says. Promises:
where the two give different numbers a model is refused. Torch is imported inside functions only.
"""

from typing import TYPE_CHECKING

from pipeline.models.border import explained
from pipeline.models.own.reading import COMPARED, row_logprobs, settings_mark
from pipeline.models.source import ModelSource
from pipeline.scores.drift import gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EAGER = "eager"

_AGREED: set[str] = set()
"""Marks of the models that were compared in this process."""


def require_same_experts(model: "PreTrainedModel", source: ModelSource) -> None:
    """Make sure that what computes a model's experts gives what the model's own class says.

    A process pays two short forwards for all models of the same settings; those without experts, or
    that `eager` computes, pay none.

    Args:
        model: the model, as it was loaded.
        source: where it is.

    Raises:
        ConfigError: the two give different numbers, or its own class cannot compute it.
    """
    before = model.get_experts_implementation()
    others = sorted({way for way in before.values() if way not in (None, EAGER)})
    mark = settings_mark(model)
    if not others or mark in _AGREED:
        return
    tokens = COMPARED + 1
    words = f"its experts {' and '.join(map(repr, others))} cannot be held against {EAGER!r}"
    with explained(f"cannot use {source.words}: {words}"):
        found = row_logprobs(model, tokens)
        try:
            model.set_experts_implementation(EAGER)
            expected = row_logprobs(model, tokens)
        finally:
            model.set_experts_implementation(before)
    gap, dtype = gap_of(found, expected), str(model.dtype).removeprefix("torch.")
    if passing := gap.beyond(noise_limit(dtype), dtype):
        raise ConfigError(
            f"cannot use {source.words}: on {len(found)} tokens transformers' experts "
            f"{' and '.join(map(repr, others))} and {EAGER!r} are {gap.words}, apart, where "
            f"{passing}. Take another release of transformers, or another model. Nothing "
            "was stored"
        )
    _AGREED.add(mark)
