"""Attention of which transformers has several implementations: which one computes a model.

Its default on torch, `sdpa`, leaves a soft cap out without a word: Gemma 2 is nats off. Promises:
where two implementations give different numbers, and nothing says which are right, a model is
refused. Torch is imported inside functions only.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.models.border import explained, is_full
from pipeline.models.look.jsonfiles import read_object
from pipeline.models.look.settings import CONFIG
from pipeline.models.own.reading import row_logprobs, settings_mark
from pipeline.models.own.twin import adds_alibi, twin_of, without_second_alibi
from pipeline.models.source import ModelSource, local_folder
from pipeline.scores.drift import gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.columns import Floats
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAP = "attn_logit_softcapping"
EAGER, SDPA = "eager", "sdpa"

CHOICE = ("attn_implementation", "_attn_implementation")
"""Settings of `config.json` that say which implementation is meant."""

_AGREED: set[str] = set()
"""Digests of the settings, number formats and devices that were compared in this process."""


def is_capped(settings: Any) -> bool:
    """Return whether a model's settings, or those of its text part, cap scores of attention."""
    return any(getattr(part, CAP, None) for part in (settings, settings.get_text_config()))


def compute_cap(model: "PreTrainedModel") -> None:
    """Have a model's attention computed by what knows its soft cap; leave others as they are."""
    if is_capped(model.config) and model.config._attn_implementation == SDPA:
        model.set_attn_implementation(EAGER)


def require_agreement(model: "PreTrainedModel", source: ModelSource, *, tokens: int) -> None:
    """Make sure that what computes a model's attention gives what the other one does.

    A process pays two forwards of one row for all models of the same settings. Models that have one
    implementation, or name theirs, are not compared.

    Args:
        model: the model, as it was loaded.
        source: where it is.
        tokens: length of the row.

    Raises:
        ConfigError: the two give different numbers, or the other one cannot be computed.
    """
    mine = model.config._attn_implementation
    other = SDPA if mine == EAGER else EAGER
    mark = settings_mark(model)
    if mark in _AGREED or is_capped(model.config):
        return
    chosen = _is_chosen(source)
    if chosen and not adds_alibi(model.config):
        return
    with explained(
        f"cannot use {source.words}: its attention {mine!r} cannot be held against {other!r}",
        advice=f"A teacher's {CONFIG} may name the right one as {CHOICE[0]}, which is believed",
    ):
        found, expected = row_logprobs(model, tokens), _otherwise(model, other, tokens)
    if expected:
        dtype = str(model.dtype).removeprefix("torch.")
        gap = min((gap_of(found, each) for each in expected), key=lambda gap: gap.max)
        if passing := gap.beyond(noise_limit(dtype), dtype):
            raise ConfigError(
                f"cannot use {source.words}: on {len(found)} tokens transformers' attention "
                f"{mine!r} and {other!r} are {gap.words}, apart, where {passing}, "
                f"{_what_to_do(chosen and mine == EAGER)}. Nothing was stored"
            )
    _AGREED.add(mark)


def _what_to_do(doubled: bool) -> str:
    if doubled:
        return (
            f"for {EAGER!r} adds ALiBi twice in a Falcon: remove {' and '.join(CHOICE)} from its "
            f"{CONFIG}"
        )
    return (
        "and nothing says which one the model was trained with. Take another release of "
        f"transformers or another model; a teacher's {CONFIG} may name the right one as {CHOICE[0]}"
    )


def _is_chosen(source: ModelSource) -> bool:
    """Return whether the model's own settings name an implementation."""
    folder = local_folder(source.whole)
    if folder is None or not (folder / CONFIG).is_file():
        return False
    settings = read_object(folder / CONFIG)
    return any(settings.get(name) is not None for name in CHOICE)


def _otherwise(model: "PreTrainedModel", other: str, tokens: int) -> list[Floats]:
    """Return what another implementation gives, in one way or two; nothing where there is none."""
    can_change: Any = getattr(model, "_can_set_attn_implementation", lambda: False)
    if not can_change():
        return list(_of_twin(model, other, tokens))
    config: Any = model.config
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    before = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    before[""] = config._attn_implementation
    try:
        model.set_attn_implementation(other)
        changed = config._attn_implementation == other
        return [row_logprobs(model, tokens)] if changed else []
    except Exception as error:  # it is not for this model, whose own has just computed it
        if is_full(error):
            raise
        return []
    finally:
        model.set_attn_implementation(before)


def _of_twin(model: "PreTrainedModel", other: str, tokens: int) -> Iterator[Floats]:
    """Yield what another implementation gives in a model that cannot change its own."""
    twin = twin_of(model, other)
    if twin is not None:
        yield row_logprobs(twin, tokens)
        if other == EAGER and without_second_alibi(twin):
            yield row_logprobs(twin, tokens)
