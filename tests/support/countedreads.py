"""A store that counts what is read of it."""

from collections import Counter

from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection


class CountedReads(Storage):
    """A store that counts how often each object is read whole."""

    def __init__(self, root: str, settings: StorageSection | None = None) -> None:
        """Start at nothing."""
        super().__init__(root, settings)
        self.reads: Counter[str] = Counter()

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes."""
        self.reads[key] += 1
        return super().get(key)
