"""Scorers of a root: found by name or key, and put into words."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.store.commit import commit_names
from pipeline.store.records import find_record, read_record
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.foreign import shown
from schemas.forms import is_part
from schemas.keys import CACHE, name_key, scorer_folder, scorer_key
from schemas.records.scores import ScorerIdentity, ScorerName

T = TypeVar("T")

SHORT = 8
"""Characters of a scorer's key that people are shown."""


def known_scorers(storage: Storage) -> list[str]:
    """Return the keys of a root's scorers, sorted.

    A folder that holds no more than the leases of who is about to make a scorer, or what a clean-up
    has not deleted yet, is none.
    """
    return [key for key in sorted(storage.folders(CACHE)) if is_there(storage, key)]


def is_there(storage: Storage, scorer: str) -> bool:
    """Return whether a root has a scorer: its description, or units that should have one."""
    return storage.exists(scorer_key(scorer)) or bool(commit_names(storage, scorer_folder(scorer)))


def of_each_scorer(storage: Storage, start: str | None, look: Callable[[str], T]) -> list[T]:
    """Return what is found of each scorer whose key begins with some characters; of all without.

    One that a clean-up deletes meanwhile is left out.

    Args:
        storage: the root's store.
        start: as for `find_scorers`.
        look: what finds it, from a scorer's key.

    Raises:
        ConfigError: as `find_scorers`.
    """
    found = []
    for scorer in find_scorers(storage, start):
        try:
            one = look(scorer)
        except DataError:
            if is_there(storage, scorer):
                raise
        else:
            found += [one] if is_there(storage, scorer) else []
    return found


def find_scorers(storage: Storage, start: str | None) -> list[str]:
    """Return the scorers of a root whose key begins with some characters; all without any.

    Raises:
        ConfigError: the root has no scorer, or none or several keys begin so.
    """
    if start == "":
        raise ConfigError("the name of a scorer is empty: give the first characters of its key")
    known = known_scorers(storage)
    found = [name for name in known if name.startswith(start or "")]
    if not found or (start is not None and len(found) > 1):
        listed = ", ".join(known) or "none"
        raise ConfigError(
            f"{storage.url(CACHE)}: {len(found)} scorers have a key that begins with "
            f"{start or ''!r}, expected one; scorers there: {listed}"
        )
    return found


def find_scorer_key(storage: Storage, start: str | None) -> str:
    """Return the one scorer of a root whose key begins with some characters; the only one of all.

    Raises:
        ConfigError: none or several keys begin so.
    """
    found = find_scorers(storage, start)
    if len(found) > 1:
        raise ConfigError(
            f"{storage.url(CACHE)} has {len(found)} scorers: say which by the first characters of "
            f"its key; scorers there: {', '.join(found)}"
        )
    return found[0]


def find_identity(storage: Storage, scorer: str) -> ScorerIdentity | None:
    """Return the identity that a scorer's cache describes, or None where it has none."""
    return find_record(storage, scorer_key(scorer), ScorerIdentity)


def teacher_words(identity: ScorerIdentity) -> str:
    """Return a scorer's teacher in words: its place on the hub, or the digest of its weights."""
    model = identity.model
    if "hub" in model:
        name = f"{model['hub']}@{str(model.get('revision'))[:SHORT]}"
    elif "mixture" in model:
        name = f"mixture of {len(model['mixture'])}"
    else:
        name = f"weights {str(model.get('weights'))[:SHORT]}"
    origin = ", ".join(key[:SHORT] for key in identity.lineage)
    made = f"made from {origin}" if origin else f"{identity.engine} {identity.engine_version}"
    reuse = "" if identity.reuse == "exact" else f", {identity.reuse}"
    return f"{name}, {identity.dtype}, {made}{reuse}"


def stored_scorer(storage: Storage, name: str) -> ScorerIdentity:
    """Return the identity of a scorer of a root, checked against its key.

    Args:
        storage: the root's store.
        name: its key or its name.

    Raises:
        ConfigError: there is no such scorer.
        IdentityError: its description was changed.
    """
    key, identity = find_named(storage, name)
    if identity.key != key:
        raise IdentityError(
            f"{storage.url(scorer_folder(key))} should hold scorer {key}, but its scorer.json "
            f"describes {identity.key}: it was changed"
        )
    return identity


def find_named(storage: Storage, name: str) -> tuple[str, ScorerIdentity]:
    """Return key and identity of a scorer of a root.

    Args:
        storage: the root's store.
        name: its name, or the first characters of its key.

    Raises:
        ConfigError: there is no such scorer.
    """
    if not is_part(name):
        raise ConfigError(f"{shown(name)} is no name of a scorer, nor the beginning of its key")
    named = find_record(storage, name_key(name), ScorerName)
    if named is not None and not is_there(storage, named.scorer):
        raise ConfigError(
            f"{storage.url(name_key(name))} stands for scorer {named.scorer!r}, which this root "
            "does not have: it was deleted. Delete that record, or make the scorer anew"
        )
    key = find_scorer_key(storage, name) if named is None else named.scorer
    return key, read_record(storage, scorer_key(key), ScorerIdentity)
