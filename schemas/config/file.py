"""From TOML text and overrides to a checked `RunConfig`, and its identity. Pure.

Promises: every mistake becomes one `ConfigError` that names the key and the nearest right one. It
repeats no value that may be a secret.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.config.profiles.base import KEY, Base, put_under
from schemas.config.run import RunConfig
from schemas.config.section import EXPECTED
from schemas.config.tree import dotted, impossible, override, parse_tree
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint
from schemas.foreign import HIDDEN, shown, without_secrets

MAX_MISTAKES = 20
"""Most mistakes that a message lists."""

MANY_MISSING = 4
"""Missing keys from which on a profile is what is missing."""

PROFILE_HINT = (
    'base: no profile is named. base = "opd:full", "opd:lora" or "opd:cpu", above the first table, '
    "has a value for all but run, student, teachers and prompts; `opd init` writes such a file"
)

MAX_WORDS = 600
"""Most characters of the words about one mistake."""

PRIVATE = re.compile(r"^storage\.|\.server\.|api|secret|passw|credential", re.IGNORECASE)
"""Keys whose texts are not repeated: people put keys and passwords there."""


@dataclass(frozen=True)
class Based:
    """A configuration, and the profile whose values stand under those of its TOML."""

    config: RunConfig
    base: Base | None = None


def parse_config(text: str, *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration written in TOML text, as `parse_based` does, without its base."""
    return parse_based(text, where=where, overrides=overrides).config


def parse_based(text: str, *, where: str, overrides: Sequence[str] = ()) -> Based:
    """Return the configuration written in TOML text, with the profile that it names.

    Args:
        text: the TOML.
        where: what messages call it.
        overrides: `section.key=value` items, the value in TOML (a bare word is a string).

    Raises:
        ConfigError: malformed TOML, unknown keys, missing keys, wrong types or values.
    """
    tree = parse_tree(text, where=where)
    for item in overrides:
        override(tree, item)
    base = put_under(tree, where=where)
    mistakes = list(islice(impossible(tree), MAX_MISTAKES + 1))
    if not mistakes:
        try:
            return Based(RunConfig.model_validate(tree), base)
        except ValidationError as error:
            mistakes = [_explain(d, base) for d in islice(error.errors(), MAX_MISTAKES + 1)]
            if base is None and sum(_is_missing(d) for d in error.errors()) >= MANY_MISSING:
                mistakes.insert(0, PROFILE_HINT)
    if len(mistakes) > MAX_MISTAKES:
        mistakes[MAX_MISTAKES:] = ["and more"]
    lines = "\n".join(f"  {mistake}" for mistake in mistakes)
    raise ConfigError(f"{where} is not a valid configuration:\n{lines}")


def identity_of(config: RunConfig) -> dict[str, Any]:
    """Return the resolved keys that define a run's results, as dotted key → value."""
    # the order of the teachers is not in their keys, and makes one of them the default
    return {"default_teacher": config.default_teacher, **dict(_identity_items(config, ""))}


def config_fingerprint(config: RunConfig) -> str:
    """Return the digest of everything that defines a run's results."""
    return fingerprint(identity_of(config))


def _identity_items(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    dumped = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), f"{prefix}{name}"
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        if isinstance(extra, dict) and extra.get("later") and value == field.default:
            continue
        if isinstance(value, BaseModel):
            yield from _identity_items(value, f"{key}.")
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for item, section in value.items():
                yield from _identity_items(section, f"{key}.{item}.")
        else:
            yield key, dumped[name]


def _is_missing(detail: Any) -> bool:
    return bool(detail["type"] == "missing")


def _explain(detail: Any, base: Base | None) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(map(dotted, location)) or "(whole file)"
    if detail["type"] == "extra_forbidden":
        known = _siblings(location)
        close = difflib.get_close_matches(location[-1][:64], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        if location[-1] == KEY:
            hint = "the base of the file stands above its first table"
        return f"{key}: unknown key; {hint}"
    if _is_missing(detail):
        return f"{key}: required, and has no default because it changes results"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "string_pattern_mismatch":
        message = EXPECTED.get(detail["ctx"]["pattern"], message)
    if detail["type"] == "tuple_type":
        message = "expected a list, such as [1, 2] or ['a']"
    given = f"; its value is that of {base.name}" if base and key in base.keys else ""
    return f"{key}: {_bounded(without_secrets(message))}{_found(detail, key)}{given}"


def _found(detail: Any, key: str) -> str:
    """Return what stands at a key, in brackets; nothing where it is a whole table."""
    found = detail.get("input")
    if isinstance(found, (dict, BaseModel)):
        return ""
    private = isinstance(found, (str, list, tuple)) and PRIVATE.search(key)
    # what is refused as a place may be half a URL, or its password may have a slash
    url = isinstance(found, str) and ":" in found and "@" in found
    return f" (found {HIDDEN if private or url else shown(found)})"


def _bounded(words: str) -> str:
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"


def _siblings(location: Sequence[str]) -> list[str]:
    """Return the keys of the table that a key stands in; none where it is no table of ours."""
    model: type[BaseModel] = RunConfig
    parts = iter(location[:-1])
    for part in parts:
        field = model.model_fields.get(part)
        annotation: Any = None if field is None else field.annotation
        arguments = getattr(annotation, "__args__", ())
        if getattr(annotation, "__origin__", None) is dict:
            next(parts, None)
        models = [a for a in (annotation, *arguments) if isinstance(a, type)]
        inner = next((a for a in models if issubclass(a, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
