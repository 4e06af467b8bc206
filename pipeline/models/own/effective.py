"""What a model's own settings come to here: what ends a response, what is off, what is ignored.

The one source of end ids. Promises: files are read as they are; a default of a library is no
setting of a model. Transformers is imported inside functions only.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.settings import CONFIG, GENERATION
from pipeline.models.source import ModelSource, load_settings, local_folder
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE = re.compile(r".*(dropout|pdrop|layerdrop|drop_rate|drop_prob|jitter).*")
"""Names of what a model leaves out, or adds, at random in training."""

CAP = re.compile(r".*soft_?cap.*")

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
    *("sequence_bias", "num_beams", "guidance_scale", "min_new_tokens", "max_new_tokens"),
)
"""Defaults of a model's files that change samples elsewhere; here the configuration alone does."""

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Effective:
    """What holds of a model's own settings."""

    end_ids: Mapping[str, tuple[int, ...]]
    """File, or the tokenizer → ids that end a response."""
    noise: Mapping[str, float]
    """Settings of dropout and router noise, which are off unless `train.model_dropout` is set."""
    caps: Mapping[str, float]
    """Soft caps of attention and logits, which count."""
    ignored: Mapping[str, Any]
    """Sampling defaults, which do not."""
    positions: int | None
    rope: str | None
    """Kind of scaling of the positions, where they are scaled."""

    def words(self) -> str:
        """Return it in a line."""
        ends = [f"{_listed(ids)} ({name})" for name, ids in self.end_ids.items()]
        parts = {
            "ends with": ", ".join(ends),
            "rope": self.rope,
            "capped": _pairs(self.caps),
            "off in training": _pairs(self.noise),
            "ignored": _pairs(self.ignored),
        }
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def effective_settings(source: ModelSource, tokenizer: "PreTrainedTokenizerBase") -> Effective:
    """Return what a model's own settings come to.

    Raises:
        ConfigError: a file cannot be read.
    """
    settings, text = _read(source, CONFIG), load_settings(source)
    flat = dict(_numbers(settings))
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = rope.get("rope_type") or rope.get("type")
    defaults = settings | _read(source, GENERATION)
    return Effective(
        end_ids=named_end_ids(source, tokenizer),
        noise={n: v for n, v in flat.items() if v and NOISE.fullmatch(n)},
        caps={n: v for n, v in flat.items() if v and CAP.fullmatch(n)},
        ignored={n: defaults[n] for n in SAMPLING if defaults.get(n) is not None},
        positions=getattr(text, "max_position_embeddings", None),
        rope=None if kind in (None, "default") else str(kind),
    )


def end_token_ids(source: ModelSource, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return every id that ends a response, whichever file of a model names it.

    Raises:
        ConfigError: none does.
    """
    found = named_end_ids(source, tokenizer)
    if not found:
        raise ConfigError(
            f"neither the tokenizer nor {GENERATION} nor {CONFIG} names an end-of-sequence token, "
            "so no response would end: set rollout.stop_token_ids, or eos_token in the student's "
            "tokenizer_config.json"
        )
    return tuple(sorted({index for ids in found.values() for index in ids}))


def named_end_ids(
    source: ModelSource, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, tuple[int, ...]]:
    """Return the ids that end a response, by who names them; who names none is left out.

    Raises:
        ConfigError: a file cannot be read.
    """
    settings = _read(source, CONFIG)
    part = settings.get("text_config")
    inner = part.get("eos_token_id") if isinstance(part, dict) else None
    found = {
        TOKENIZER: _ids(tokenizer.eos_token_id),
        GENERATION: _ids(_read(source, GENERATION).get("eos_token_id")),
        CONFIG: _ids(settings.get("eos_token_id")) or _ids(inner),
    }
    return {name: ids for name, ids in found.items() if ids}


def generation_file(source: ModelSource) -> Path | None:
    """Return a model's `generation_config.json` on this machine; None where it has none."""
    if source.whole.is_folder:
        path = Path(source.whole.location) / GENERATION
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    look: Any = cached_file
    found = look(
        source.whole.location,
        GENERATION,
        revision=source.whole.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _read(source: ModelSource, name: str) -> dict[str, Any]:
    folder = local_folder(source.whole)
    path = generation_file(source) if name == GENERATION else folder and folder / name
    if path is None or not path.is_file():
        return {}
    try:
        return read_object(path)
    except Unusable as error:
        raise source.blame(f"{path} cannot be used: it {error}") from error


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(sorted({index for index in values if type(index) is int and index >= 0}))


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of settings and of their text part."""
    for name, value in settings.items():
        if name == "text_config" and isinstance(value, dict):
            yield from _numbers(value)
        elif type(value) in (int, float):
            yield name, value


def _listed(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids))


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
