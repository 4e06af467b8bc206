"""What the files of a tokenizer say: ids within the model, a chat template that can be read.

Promises: no template is rendered. Jinja is imported inside functions only.
"""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.models.look.jsonfiles import (
    SETTINGS_BYTES,
    VOCABULARY_BYTES,
    Unusable,
    parse_object,
    read_bytes,
    read_object,
)
from schemas.foreign import shown

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

OTHERS = ("special_tokens_map.json", "added_tokens.json", "preprocessor_config.json")
"""Further files that transformers reads with a tokenizer."""

TEMPLATE_BYTES = 1 << 20


def tokenizer_faults(folder: Path, vocab_size: int | None) -> Iterator[str]:
    """Yield what is wrong in the files of a tokenizer.

    Args:
        folder: where they are; those that are not there are not missed.
        vocab_size: ids of the model, or None where that is not known.
    """
    for name in (TOKENIZER, SETTINGS, *OTHERS):
        if not _is_there(folder / name):
            continue
        most = VOCABULARY_BYTES if name == TOKENIZER else SETTINGS_BYTES
        try:
            yield from _file_faults(name, read_bytes(folder / name, most=most), vocab_size)
        except Unusable as error:
            yield f"{name} {error}"


@lru_cache(maxsize=16)
def _file_faults(name: str, data: bytes, vocab_size: int | None) -> tuple[str, ...]:
    """Return the faults of one file; every checkpoint of a run has the same large one."""
    value = parse_object(data)
    if name == TOKENIZER:
        return tuple(f"{name}: {words}" for words in _vocabulary_faults(value, vocab_size))
    if name == SETTINGS:
        return tuple(f"{name}: {words}" for words in _added_faults(value, vocab_size))
    return ()


def template_faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the syntax of a tokenizer's chat templates."""
    if _is_there(folder / TEMPLATE):
        try:
            text = read_bytes(folder / TEMPLATE, most=TEMPLATE_BYTES).decode("utf-8")
            yield from _syntax_faults(TEMPLATE, text)
        except Unusable as error:
            yield f"{TEMPLATE} {error}"
        except UnicodeDecodeError as error:
            yield f"{TEMPLATE} is not UTF-8 text (byte {error.start})"
    if not _is_there(folder / SETTINGS):
        return
    try:
        held = read_object(folder / SETTINGS).get("chat_template")
    except Unusable:
        return  # told with the other files
    many = held if isinstance(held, list) else [{"template": held}]
    for one in many:
        inner = one.get("template") if isinstance(one, Mapping) else one
        yield from _syntax_faults(f"{SETTINGS}: chat_template", inner)


def _vocabulary_faults(value: Mapping[str, Any], vocab_size: int | None) -> Iterator[str]:
    model = value.get("model")
    if not isinstance(model, Mapping):
        yield f"model is {shown(model)}, expected an object with the vocabulary"
        return
    if model.get("dropout"):
        yield (
            f"model.dropout is {shown(model['dropout'])}: merges would be left out at random, so "
            "that a text has other ids each time. Set it to null, as the model was used"
        )
    added = value.get("added_tokens") or []
    pieces = model.get("vocab")
    if not isinstance(pieces, Mapping | list) or not isinstance(added, list):
        yield "model.vocab or added_tokens is missing or of another form; copy the file again"
        return
    ids: list[Any] = [*pieces.values()] if isinstance(pieces, Mapping) else [*range(len(pieces))]
    ids += [one.get("id") if isinstance(one, Mapping) else one for one in added]
    wrong = next((one for one in ids if type(one) is not int or one < 0), None)
    if wrong is not None or None in ids:
        yield f"has a token with the id {shown(wrong)}, expected a whole number from 0"
    elif vocab_size is not None and ids and (largest := max(ids)) >= vocab_size:
        yield _too_large(largest, vocab_size)


def _added_faults(value: Mapping[str, Any], vocab_size: int | None) -> Iterator[str]:
    longest = value.get("model_max_length")
    if longest is not None and (not isinstance(longest, int | float) or not longest > 0):
        yield f"model_max_length is {shown(longest)}, expected a number above 0"
    added = value.get("added_tokens_decoder")
    if added is None:
        return
    numbers = [key for key in added if key.isdecimal()] if isinstance(added, Mapping) else []
    if not isinstance(added, Mapping) or len(numbers) != len(added):
        yield "added_tokens_decoder is of another form, expected ids and their tokens"
    elif numbers and vocab_size is not None and max(map(int, numbers)) >= vocab_size:
        yield _too_large(max(map(int, numbers)), vocab_size)


def _too_large(largest: object, vocab_size: int) -> str:
    return (
        f"has a token with the id {largest}, but the model has {vocab_size} ids (vocab_size): the "
        "tokenizer is of another model, or the model's embedding was not resized to it"
    )


def _syntax_faults(where: str, text: object) -> Iterator[str]:
    if text is None:
        return
    if not isinstance(text, str):
        yield f"{where} is {shown(text)}, expected text"
        return
    if len(text) > TEMPLATE_BYTES:
        yield f"{where} has {len(text):,} characters, expected at most {TEMPLATE_BYTES:,}"
        return
    from jinja2 import TemplateSyntaxError

    try:
        _grammar().parse(text)
    except TemplateSyntaxError as error:
        yield f"{where} is no Jinja template (line {error.lineno}): {shown(error.message)}"
    except RecursionError:
        yield f"{where} is nested too deeply"


def _grammar() -> Any:
    """Return Jinja with the statements that transformers adds to it."""
    from jinja2 import Environment
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(extensions=[Generation, loopcontrols], autoescape=False)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)
