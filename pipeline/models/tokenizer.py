"""Tokenizers: loading them, digests of what they mean, and whether two of them are the same.

Promises: a digest depends on what ids mean, never on a folder's name, padding side, longest
length or chat template. Transformers is imported inside functions only.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.border import explained
from pipeline.models.look.settings import CONFIG
from pipeline.models.look.vocabulary import SETTINGS, TOKENIZER
from pipeline.models.own.pieces import held_vocabulary
from pipeline.models.source import ModelSource
from pipeline.models.tokenizerfile import held_tokenizer, refuse_own_code
from pipeline.store.disk.files import file_sha256
from schemas.errors import ConfigError, OpdError
from schemas.forms import TEMPLATES
from schemas.keys import manifest_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Patterns of files that hold a vocabulary; without one, transformers makes an empty tokenizer."""

NOT_READ = (
    *("*.safetensors", "*.safetensors.index.json", "opd-probe-*.json"),
    Path(manifest_key("checkpoint")).name,
)
"""Files of a folder that no tokenizer is read from: weights, and what the store adds."""

MOST_BYTES = 2**26
"""Largest file whose content is looked at: a tokenizer's takes less."""

MOST_READ = 8

_READ: dict[tuple[str, ...], "PreTrainedTokenizerBase"] = {}
"""Tokenizers of this process by the content of their files; nobody changes one."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

SHOWN_CHARS = 80


def load_tokenizer(
    location: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    blame: type[OpdError] = ConfigError,
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a folder or a hub id.

    Raises:
        ConfigError: no such folder or hub id, or it holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    folder = Path(location).expanduser()
    local = folder.exists() or (revision is None and not HUB_ID.fullmatch(location))
    if local:
        _check_folder(folder, needs_files=not trust_remote_code)
    where = f"in {location}" if local else f"for the hub id {location!r} (revision {revision})"
    with explained(f"the tokenizer {where} cannot be read", blame=blame, advice=_advice(local)):
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if local else location,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    if tokenizer.vocab_size < 2:
        raise blame(
            f"{location} holds no tokenizer: its vocabulary is empty, read as "
            f"{type(tokenizer).__name__}. Copy the model's {TOKENIZER} there; a tokenizer with "
            "code of its own needs trust_remote_code"
        )
    with explained(f"the tokenizer {where} cannot be read", blame=blame, advice=_advice(local)):
        return _held(tokenizer, folder if local else _downloads(location, revision), blame)


def _held(
    tokenizer: "PreTrainedTokenizerBase", place: Path | None, blame: type[OpdError]
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer as its own file has it, or else its vocabulary."""
    from transformers import PreTrainedTokenizerFast

    if place is None:
        return tokenizer
    if not (place / TOKENIZER).is_file():
        return held_vocabulary(tokenizer, place, blame=blame)
    own: Any = PreTrainedTokenizerFast  # reads the file as it is
    return held_tokenizer(tokenizer, place, lambda: own.from_pretrained(str(place)), blame=blame)


def _downloads(location: str, revision: str | None) -> Path | None:
    """Return the folder where a hub id's files are, as far as they were downloaded."""
    found = (_downloaded(location, revision, name) for name in (TOKENIZER, SETTINGS, CONFIG))
    return next(filter(None, found), None)


def _downloaded(location: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location, name, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def model_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """Return a model's tokenizer; that of its base for an adapter that comes without one.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    place = tokenizer_place(source)
    tokenizer = _remembered(place, place.revision)
    if not place.trust_remote_code and not place.stored:  # what is stored was let in before
        folder = (
            Path(place.location)
            if place.is_folder
            else _downloaded(place.location, place.revision, SETTINGS)
        )
        with explained(f"the tokenizer of {place.words} cannot be read"):
            refuse_own_code(folder)
    return tokenizer


def stored_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """Return the tokenizer beside a stored checkpoint; code in it runs only where it is trusted.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    return _remembered(source, None)


def _remembered(source: ModelSource, revision: str | None) -> "PreTrainedTokenizerBase":
    """Return a model's tokenizer; one that was read from files of the same content is it."""
    folder = Path(source.location)
    key = None if source.trust_remote_code or not folder.is_dir() else _content(folder)
    if key is not None and key in _READ:
        return _READ[key]
    tokenizer = load_tokenizer(
        source.location,
        revision=revision,
        trust_remote_code=source.trust_remote_code,
        blame=source.blame,
    )
    if key is not None:
        while len(_READ) >= MOST_READ:
            del _READ[next(iter(_READ))]
        _READ[key] = tokenizer
    return tokenizer


def _content(folder: Path) -> tuple[str, ...] | None:
    """Return names and digests of all files that a tokenizer may be read from."""
    try:
        files = sorted(
            p for p in (*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")) if p.is_file()
        )
        kept = [path for path in files if not any(map(path.match, NOT_READ))]
        return tuple(f"{path.relative_to(folder)} {_state(path)}" for path in kept)
    except OSError:  # whoever reads them for good says so
        return None


def _state(path: Path) -> str:
    """Return what tells a file from another of its name: its content, unless that is weights."""
    found = path.stat()
    large = found.st_size > MOST_BYTES
    return f"{path} {found.st_size} {found.st_mtime_ns}" if large else file_sha256(path)


def tokenizer_place(source: ModelSource) -> ModelSource:
    """Return where a model's tokenizer is: beside it, or beside its base for an adapter."""
    return source if _has_vocabulary(Path(source.location)) else source.whole


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return one more than the largest id that the tokenizer knows, gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def check_fits(tokenizer: "PreTrainedTokenizerBase", settings: Any, label: str) -> None:
    """Make sure that a model has every id that its tokenizer gives.

    Args:
        tokenizer: the tokenizer.
        settings: the model's `config.json`.
        label: what messages call the model.

    Raises:
        ConfigError: it lacks some.
    """
    used, size = vocabulary_size(tokenizer), settings.vocab_size
    if used > size:
        raise ConfigError(
            f"{label}: its tokenizer has {used} ids, but the model has {size} (vocab_size): they "
            "are of different models, or the embedding was not resized to the tokenizer"
        )


def _check_folder(folder: Path, *, needs_files: bool) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"no tokenizer at {folder}: there is no such folder. Expected a folder with a "
            "tokenizer.json; correct the path"
        )
    if needs_files and not _has_vocabulary(folder):
        raise ConfigError(
            f"no tokenizer in {folder}: expected one of {', '.join(VOCABULARY_FILES)}. Copy the "
            "tokenizer's files there, or save it with tokenizer.save_pretrained"
        )


def _has_vocabulary(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in VOCABULARY_FILES)


def _advice(local: bool) -> str:
    if local:
        return (
            "Expected a tokenizer.json that this version of transformers knows; copy the files "
            "again"
        )
    return (
        "There is no folder of that name either, and where the hub was not reached, nothing is in "
        "the local cache. Correct the id, connect to the hub (HF_HUB_OFFLINE unset, HF_TOKEN for "
        "private models), or download the model and give its folder"
    )


def shortened(text: str) -> str:
    """Return a text cut to what a message may hold."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
