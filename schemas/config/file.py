"""From TOML text and overrides to a checked `RunConfig`, and its identity. Pure.

Promises: every mistake becomes one `ConfigError` that names the key and the nearest right one.
"""

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.config.run import RunConfig
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint


def parse_config(text: str, *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration written in TOML text.

    Args:
        text: the TOML.
        where: what messages call it.
        overrides: `section.key=value` items, the value in TOML (a bare word is a string).

    Raises:
        ConfigError: malformed TOML, unknown keys, missing keys, wrong types or values.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from error
    for item in overrides:
        _override(tree, item)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(detail)}" for detail in error.errors())
        raise ConfigError(f"{where} is not a valid configuration:\n{lines}") from error


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


def _override(tree: dict[str, Any], item: str) -> None:
    key, separator, text = item.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set takes section.key=value, found {item!r}")
    table = tree
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {item!r}: {part!r} is a value, not a section")
    table[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location) or "(whole file)"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], _siblings(location), n=1, cutoff=0.5)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_siblings(location))}"
        )
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "tuple_type":
        return f"{key}: expected a list, such as [1, 2] or ['a'] (found {detail['input']!r})"
    if detail["type"] == "missing":
        return f"{key}: required, and has no default because it changes results"
    message = str(detail["msg"]).removeprefix("Value error, ")
    found = detail.get("input")
    shown = "" if isinstance(found, dict) else f" (found {found!r})"
    return f"{key}: {message}{shown}"


def _siblings(location: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    parts = iter(location[:-1])
    for part in parts:
        annotation: Any = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        if getattr(annotation, "__origin__", None) is dict:
            next(parts, None)
        models = [a for a in (annotation, *arguments) if isinstance(a, type)]
        model = next(a for a in models if issubclass(a, BaseModel))
    return list(model.model_fields)
