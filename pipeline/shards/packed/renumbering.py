"""Vocabulary ids renumbered by frequency, so that likely ids are small numbers. Pure.

The table of a scorer is learnt once, from the top-k ids of some of its scores, and stored as bytes
whose digest every shard names. Shapes: V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.fingerprint import sha256

MAX_VOCABULARY = 1 << 24
"""Most ids that a table has numbers for."""


@dataclass(frozen=True, eq=False)
class Renumbering:
    """A permutation of the ids of a vocabulary.

    Attributes:
        ids_V: int32, the id behind each number.
        numbers_V: int32, the number of each id.
        digest: sha256 of the table's bytes.
    """

    ids_V: NDArray[np.int32]
    numbers_V: NDArray[np.int32]
    digest: str

    @classmethod
    def learn(cls, ids: NDArray[Any], *, vocab_size: int) -> Self:
        """Return the table that numbers ids by how often they occur, ties and the rest by id."""
        counts = np.bincount(ids.reshape(-1), minlength=vocab_size)
        seen = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        table = cls.from_bytes(_bytes(seen, vocab_size), where="a learnt renumbering")
        return cls.from_bytes(table.to_bytes(), where="a learnt renumbering")

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Return the table of its bytes: the vocabulary's size, then the ids of the first numbers.

        Ids that are not listed have the following numbers, in their own order.

        Raises:
            DataError: no such bytes, a vocabulary above 2^24, or an id that is listed twice.
        """
        if len(data) < 4 or len(data) % 4:
            raise DataError(f"{where} is not a renumbering: it has {len(data)} bytes")
        (vocab_size, *_), seen = (words := np.frombuffer(data, "<u4")), words[1:].astype(np.int64)
        if not 0 < vocab_size <= MAX_VOCABULARY or (seen >= vocab_size).any():
            raise DataError(f"{where} is not a renumbering of at most {MAX_VOCABULARY} ids")
        unseen = np.ones(vocab_size, dtype=bool)
        unseen[seen] = False
        ids_V = np.concatenate([seen, np.flatnonzero(unseen)]).astype(np.int32)
        if len(ids_V) != vocab_size:
            raise DataError(f"{where} is not a renumbering: it lists an id twice")
        numbers_V = np.empty_like(ids_V)
        numbers_V[ids_V] = np.arange(vocab_size, dtype=np.int32)
        return cls(ids_V, numbers_V, sha256(data))

    def check_size(self, vocab_size: int, *, where: str) -> None:
        """Make sure that the table is of a vocabulary of a size.

        Raises:
            DataError: it is of another one.
        """
        if len(self.ids_V) != vocab_size:
            raise DataError(
                f"{where} has {vocab_size} ids, the renumbering that it names {len(self.ids_V)}"
            )

    def to_bytes(self) -> bytes:
        """Return the bytes of the table, the shortest that give it back."""
        falls = np.flatnonzero(np.diff(self.ids_V) < 0)
        end = int(falls[-1]) + 1 if len(falls) else 0
        return _bytes(self.ids_V[:end], len(self.ids_V))


def _bytes(seen: NDArray[Any], vocab_size: int) -> bytes:
    return np.concatenate([[vocab_size], seen]).astype("<u4").tobytes()
