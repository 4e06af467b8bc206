"""Pins: scorers whose caches clean-up leaves alone, whoever uses them."""

from pipeline.storage import Storage
from schemas.manifest import PinRecord


def pin_scorer_cache(storage: Storage, scorer: str, note: str) -> bool:
    """Protect a scorer's cache; return whether it was free before."""
    if storage.exists(_key(scorer)):
        return False
    return storage.create(_key(scorer), PinRecord(scorer=scorer, note=note).to_bytes())


def unpin_scorer_cache(storage: Storage, scorer: str) -> bool:
    """Give up the protection of a scorer's cache; return whether it was protected."""
    pinned = storage.exists(_key(scorer))
    storage.delete(_key(scorer))
    return pinned


def pinned_scorers(storage: Storage) -> set[str]:
    """Return the scorers that are protected."""
    return {name.removesuffix(".json") for name in storage.names("pins")}


def _key(scorer: str) -> str:
    return f"pins/{scorer}.json"
