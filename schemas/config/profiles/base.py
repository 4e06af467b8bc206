"""The `base` of a TOML: a profile whose values stand under those of the file.

Promises: a version of a profile never changes, and is kept as long as opd is. Reads nothing but the
profiles that opd brings.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from schemas.errors import ConfigError
from schemas.foreign import shown

KEY = "base"

EVERY = "*"
"""Name of the table below `teachers` whose values are those of every teacher."""

OPTIONAL = ("eval", "reward", "gate")
"""Tables of a profile that count only where the file has them too."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """A profile as a file names it, and the keys of the configuration that it gave."""

    name: str
    """With its version, such as `opd:cpu@1`."""
    keys: frozenset[str]
    """Dotted."""


def profile_names() -> list[str]:
    """Return the profiles that there are, each in every version."""
    files = (re.fullmatch(r"([a-z]+)-([0-9]+)\.toml", one.name) for one in _folder().iterdir())
    found = sorted((match[1], int(match[2])) for match in files if match)
    return [f"opd:{name}@{version}" for name, version in found]


def put_under(tree: Tree, *, where: str) -> Base | None:
    """Take the base out of a tree, and put its values where the tree has none.

    Args:
        tree: of a TOML, overrides included; it is changed.
        where: what messages call the TOML.

    Raises:
        ConfigError: there is no such profile.
    """
    if KEY not in tree:
        return None
    name = full_name(tree.pop(KEY), where=f"{where} is not a valid configuration:\n  {KEY}")
    profile = profile_values(name)
    every = profile.get("teachers", {}).get(EVERY, {})
    under = {key: value for key, value in profile.items() if key not in ("teachers", *OPTIONAL)}
    under |= {key: profile[key] for key in OPTIONAL if key in tree and key in profile}
    taken = list(_merge(tree, under, ""))
    teachers = tree.get("teachers")
    for teacher, table in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(table, dict):
            taken += _merge(table, every, f"teachers.{teacher}.")
    return Base(name, frozenset(taken))


def full_name(given: object, *, where: str) -> str:
    """Return the name of a profile with its version: the newest where it has none.

    Args:
        given: the name.
        where: what a message begins with.

    Raises:
        ConfigError: there is no such profile.
    """
    names = profile_names()
    known = {name.partition("@")[0]: name for name in names} | {name: name for name in names}
    if isinstance(given, str) and given in known:
        return known[given]
    close = difflib.get_close_matches(str(given)[:64], known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"{where}: there is no profile {shown(given)}; {hint}There are {', '.join(known)}"
    )


def _merge(tree: Tree, under: Tree, prefix: str) -> Iterator[str]:
    """Put values into a tree where it has none; yield the keys of those that it took."""
    for name, value in under.items():
        if isinstance(value, dict) and isinstance(tree.setdefault(name, {}), dict):
            yield from _merge(tree[name], value, f"{prefix}{name}.")
        elif name not in tree:
            tree[name] = value
            yield f"{prefix}{name}"


@cache
def profile_text(name: str) -> str:
    """Return the TOML of a profile, named with its version."""
    file = name.removeprefix("opd:").replace("@", "-")
    return str((_folder() / f"{file}.toml").read_text(encoding="utf-8"))


def profile_values(name: str) -> Tree:
    """Return the tables of a profile, named with its version."""
    return tomllib.loads(profile_text(name))


def _folder() -> Any:
    return resources.files(__package__)
