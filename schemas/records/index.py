"""Records of the sequence index."""

from schemas.forms import Count, Key, Place
from schemas.keys import index_part, index_state_key, parent
from schemas.records.record import Record, Versioned


class IndexPart(Record):
    """Sorted entries of the sequence index in one object."""

    key: Key
    rows: Count
    first: Place
    """Smallest key in it."""
    last: Place
    """Largest key in it."""


class IndexRun(Record):
    """Sorted entries in parts that follow one another, and the shards that they number."""

    parts: tuple[IndexPart, ...]
    table: Key
    """Key of the table of shards."""

    @property
    def rows(self) -> int:
        """Number of entries."""
        return sum(part.rows for part in self.parts)


class IndexState(Versioned):
    """The runs of a sequence index, one per level at most."""

    number: Count
    runs: tuple[IndexRun | None, ...]

    def misplaced(self, key: str) -> str | None:
        """Return why it is no state of the index of a key: its number, or an object elsewhere."""
        index = parent(parent(key))
        if key != index_state_key(index, self.number):
            return f"the state {self.number} of an index"
        runs = [run for run in self.runs if run is not None]
        strays = [run.table for run in runs if parent(run.table) != index_part(index, "tables")]
        parts = [part.key for run in runs for part in run.parts]
        strays += [part for part in parts if parent(part) != index_part(index, "parts")]
        return f"a state of another index, for it names {strays[0]}" if strays else None
