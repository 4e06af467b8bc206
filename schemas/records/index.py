"""Records of the sequence index."""

from schemas.records.record import Record, Versioned


class IndexPart(Record):
    """Sorted entries of the sequence index in one object."""

    key: str
    rows: int
    first: int
    """Smallest key in it."""
    last: int
    """Largest key in it."""


class IndexRun(Record):
    """Sorted entries in parts that follow one another, and the shards that they number."""

    parts: tuple[IndexPart, ...]
    table: str
    """Key of the table of shards."""

    @property
    def rows(self) -> int:
        """Number of entries."""
        return sum(part.rows for part in self.parts)


class IndexState(Versioned):
    """The runs of a sequence index, one per level at most."""

    number: int
    runs: tuple[IndexRun | None, ...]
