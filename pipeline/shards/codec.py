"""The seam between score tables in memory and the columns that a shard stores.

A codec is a pair of pure functions; its name, with its version, is in every shard's metadata.
"""

from typing import NamedTuple, Protocol

import pyarrow as pa

from pipeline.shards import typed
from pipeline.shards.packed import columns as packed
from pipeline.shards.packed.renumbering import Renumbering
from schemas.errors import DataError
from schemas.foreign import shown
from schemas.scoresignal import Signal


class Encode(Protocol):
    """From a checked score table to stored columns."""

    def __call__(
        self, table: pa.Table, *, signal: Signal, vocab_size: int, renumbering: Renumbering | None
    ) -> pa.Table:
        """Return the stored columns."""


class Decode(Protocol):
    """From stored columns to a score table that is still to be checked."""

    def __call__(
        self,
        table: pa.Table,
        *,
        signal: Signal,
        vocab_size: int,
        renumbering: Renumbering | None,
        where: str,
    ) -> pa.Table:
        """Return the score table, or raise DataError where the columns cannot be its."""


class Codec(NamedTuple):
    """How score tables are stored."""

    encode: Encode
    decode: Decode
    renumbers: bool
    """Whether ids are stored by a renumbering that the scorer keeps."""


CODECS = {
    "typed-v1": Codec(typed.encode, typed.decode, renumbers=False),
    "packed-v1": Codec(packed.encode, packed.decode, renumbers=True),
}


def codec_named(name: object, *, where: str) -> Codec:
    """Return the codec of a name.

    Raises:
        DataError: this version of opd has no such codec.
    """
    found = CODECS.get(name) if isinstance(name, str) else None
    if found is None:
        raise DataError(
            f"{where} is stored by codec {shown(name)}; this opd reads {', '.join(CODECS)}: "
            "install a newer opd, or score again"
        )
    return found
