"""What a kind of store must do: the seam between `storage` and folders, S3 and memory.

Promises of every kind: an object is written whole or not at all; no listing is cached. Must not:
retry or translate errors (`storage` does).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Version:
    """What stands at a name."""

    tag: str
    """Changes with every write."""
    age_s: float
    """Seconds since it was written, by the store's own clock."""
    num_bytes: int
    """Length of the object."""


class ShortObjectError(FileNotFoundError):
    """What was asked for lies beyond the end of an object: an answer, which no repetition changes.

    Objects appear whole, so one that is shorter than a record says is damaged, not unfinished.
    """


def whole(ranges: Sequence[tuple[str, int, int]], pieces: list[bytes]) -> list[bytes]:
    """Return pieces of objects, all of which have the length that was asked for.

    Raises:
        ShortObjectError: one of them is shorter.
    """
    for (name, start, stop), piece in zip(ranges, pieces, strict=True):
        if len(piece) != stop - start:
            raise ShortObjectError(
                f"{name} gave {len(piece)} bytes from byte {start}, not {stop - start}"
            )
    return pieces


@dataclass(frozen=True)
class Leftover:
    """An unfinished write."""

    name: str
    """Full name of the temporary file, or of the object that it was to be."""
    upload: str | None
    """Number of the multipart upload; None for a file."""
    age_s: float
    """Seconds since it was begun or last written, by the store's own clock."""


class Backend(Protocol):
    """What a kind of store must do with full object names."""

    def read(self, name: str) -> bytes:
        """Return all bytes; FileNotFoundError where there is no such object."""

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of objects (name, first byte, byte after the last), whole or not at all."""

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Write all bytes; FileExistsError where `create` finds the object."""

    def version(self, name: str) -> Version:
        """Return the version of an object; FileNotFoundError where there is none."""

    def replace(self, name: str, data: bytes, version: Version) -> None:
        """Write over an object of a version; FileExistsError where it is another or none."""

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects directly in a folder, without it."""

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders directly in a folder."""

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""

    def upload(self, name: str, path: Path) -> None:
        """Write an object from a local file."""

    def download(self, name: str, path: Path) -> None:
        """Write a local file from an object."""

    def delete(self, name: str) -> None:
        """Remove an object if it is there."""

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the unfinished writes below a folder."""

    def discard(self, leftover: Leftover) -> None:
        """Free the room of an unfinished write."""
