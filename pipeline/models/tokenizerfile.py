"""Tokenizers held against the file of their folder: what transformers makes must be what it says.

Promises: a tokenizer that passes gives the ids and the text of the folder's own `tokenizer.json`,
read by the tokenizers library alone, for texts of many kinds.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.border import explained
from pipeline.models.look.jsonfiles import read_object
from pipeline.models.look.vocabulary import SETTINGS, TOKENIZER
from schemas.errors import ConfigError, OpdError
from schemas.fingerprint import sha256
from schemas.foreign import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_CODE = "transformers_modules"
"""Package of classes that come as code beside a model; what they add is theirs to say."""

AUTO_CLASS = "AutoTokenizer"
"""What settings call the class that is to be taken for a tokenizer."""

TEXTS = (
    *("the sum of 0 and 0 is", "The Sum", " one space before", "one behind ", "two  and   three"),
    *(
        "    four\tand a tab",
        "a line\nand two\n\n\nmore\r\n",
        "12345 67,890.12 3/4",
        "x = {'a': [1]}",
    ),
    *("it's we'll I'D", "naïve café", "e\u0301 a\u0308 combined", "ﬁ ½ Å", "中文 日本語 한국어"),
    *("Привет мир", "مرحبا بالعالم", "שלום", "नमस्ते", "ไทย", "🙂👩‍👩‍👧 🇩🇪", "\u00a0\u200b\u2028"),
    *("", " ", "\n", "<s>", "[INST] a [/INST]", "<|im_start|>user\n", "▁ Ġ ##a", "\x00\x07\x7f"),
)

MOST_ADDED = 32

_KNOWN: set[tuple[str, ...]] = set()
"""Files that were compared in this process, by content, with the class that read them."""


def held_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    reread: Callable[[], "PreTrainedTokenizerBase"],
    *,
    blame: type[OpdError] = ConfigError,
) -> "PreTrainedTokenizerBase":
    """Return a tokenizer that reads and writes as the folder's `tokenizer.json` does.

    Args:
        tokenizer: what transformers made of the folder.
        folder: the folder; without the file, nothing is held.
        reread: reads the file as it is, without a class that builds it anew.
        blame: the error where neither does as the file says.

    Raises:
        ConfigError: no reading gives what the file says.
    """
    if not (folder / TOKENIZER).is_file() or type(tokenizer).__module__.startswith(OWN_CODE):
        return tokenizer
    files = [path for path in (folder / TOKENIZER, folder / SETTINGS) if path.is_file()]
    key = (type(tokenizer).__name__, *(sha256(path.read_bytes()) for path in files))
    if key in _KNOWN:
        return tokenizer
    from tokenizers import Tokenizer

    with explained(f"{folder / TOKENIZER} cannot be read", blame=blame):
        own = Tokenizer.from_file(str(folder / TOKENIZER))
        own.no_truncation()
        own.no_padding()
    if _difference(tokenizer, own) is None:
        _KNOWN.add(key)
        return tokenizer
    again = reread()
    difference = _difference(again, own)
    if difference is None:
        return again
    raise blame(
        f"the tokenizer of {folder} is not what its {TOKENIZER} says: {difference}. transformers "
        f"builds it anew as {type(tokenizer).__name__}: correct tokenizer_class in {SETTINGS}, or "
        "save the tokenizer again with the release of transformers that it was made with"
    )


def refuse_own_code(folder: Path | None) -> None:
    """Refuse a tokenizer whose own code is not trusted: read without it, it may read other text.

    Args:
        folder: with the tokenizer's files; None where they are not on this machine.

    Raises:
        ConfigError: its settings name code of its own.
    """
    if folder is None or not (folder / SETTINGS).is_file():
        return
    named = read_object(folder / SETTINGS).get("auto_map")
    own = named.get(AUTO_CLASS) if isinstance(named, Mapping) else named
    if not (any(own) if isinstance(own, list) else own):
        return
    raise ConfigError(
        f"the tokenizer of {folder} comes with code of its own: {SETTINGS} names {shown(own)} in "
        "auto_map, which may change texts before they become ids, and is not run unasked. Set "
        "trust_remote_code = true in the model's section if you trust it, or remove auto_map where "
        f"{TOKENIZER} alone is what the model was trained with"
    )


def _difference(tokenizer: Any, own: Any) -> str | None:
    """Return, in words, the first text that two tokenizers read or write otherwise."""
    whole = {"skip_special_tokens": False}
    asis = {**whole, "clean_up_tokenization_spaces": False}
    for text in _texts(own):
        ids = _tried(lambda t: own.encode(t, add_special_tokens=False).ids, text)
        found = _tried(lambda t: tokenizer.encode(t, add_special_tokens=False), text)
        if found != ids:
            return f"{shown(text)} becomes {ids_apart(found, ids)}"
        if ids is None:
            continue
        said = _tried(lambda i: own.decode(i, **whole), ids)
        mine = _tried(lambda i: tokenizer.decode(i, **asis), ids)
        if mine != said:
            return f"the ids of {shown(text)} become {shown(mine)}, expected {shown(said)}"
    return None


def ids_apart(found: list[int] | None, expected: list[int] | None) -> str:
    """Return two readings of a text in words, from the first id in which they differ."""
    if found is None or expected is None:
        return f"{shown(found)}, expected {shown(expected)}"
    pairs = enumerate(zip(found, expected, strict=False))
    first = next((at for at, (a, b) in pairs if a != b), min(len(found), len(expected)))
    where = f" from id {first} on" if first else ""
    return f"{shown(found[first:])}, expected {shown(expected[first:])}{where}"


def _texts(own: Any) -> Iterator[str]:
    yield from TEXTS
    added = [token.content for token in own.get_added_tokens_decoder().values()]
    for token in [*added[: MOST_ADDED // 2], *added[-MOST_ADDED // 2 :]]:
        yield f"a {token} b{token}c"


def _tried(call: Callable[[Any], Any], value: Any) -> Any:
    """Return what a call gives; None where it raises, such as for a text without any token."""
    try:
        return call(value)
    except Exception:
        return None
