"""Prompt files: where they are, and what their bytes are.

Promises: a local file is read in pieces; what is no regular file, such as a pipe, is never opened.
Must not: look into a file (`lines` and `table` do).
"""

import difflib
import gzip
import posixpath
import stat
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.store.disk.files import file_sha256
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.errors import ConfigError, StorageError
from schemas.fingerprint import sha256
from schemas.foreign import shown

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class PromptFile:
    """A prompt file that is there: what messages call it, its digest and its bytes."""

    location: str
    sha256: str
    content: Path | bytes

    @property
    def unit(self) -> str:
        """Return what the numbers of records count."""
        return "row" if self.location.endswith(".parquet") else "line"

    def place(self, number: int) -> str:
        """Return the name of a record in messages: `file:line`, or `file:row N`."""
        return f"{self.location}:{'row ' if self.unit == 'row' else ''}{number}"

    def size(self) -> int:
        """Return the bytes of the file as it is stored."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def open(self) -> BinaryIO:
        """Return the file's bytes as a stream."""
        return self.content.open("rb") if isinstance(self.content, Path) else BytesIO(self.content)

    def lines(self) -> BinaryIO:
        """Return the file's lines as a stream, decompressed."""
        if not self.location.endswith(".gz"):
            return self.open()
        source = self.content if isinstance(self.content, Path) else BytesIO(self.content)
        return cast(BinaryIO, gzip.open(source))

    def check_unchanged(self) -> None:
        """Make sure that a local file still is what its digest says.

        Raises:
            ConfigError: somebody wrote to it meanwhile.
        """
        if isinstance(self.content, Path) and file_sha256(self.content) != self.sha256:
            raise ConfigError(
                f"{self.location} changed while it was read: wait for its writer to end, then run "
                "the same command again"
            )


def find_prompt_file(location: str, *, key: str, settings: StorageSection) -> PromptFile | None:
    """Return the prompt file at an absolute path or URL, or None where there is no such file.

    Args:
        location: the path or URL.
        key: the configuration's key that names it.
        settings: how a remote store is spoken to.

    Raises:
        ConfigError: its name has another ending, its URL another scheme, or it cannot be read.
        StorageError: the store does not answer.
    """
    if "\0" in location or not location.endswith(EXTENSIONS):
        raise ConfigError(
            f"{key} = {location!r}: expected a file that ends in {', '.join(EXTENSIONS)}"
        )
    storage, name = _store(location, key=key, settings=settings)
    if storage.local_root is None:
        data = storage.get(name)
        return None if data is None else PromptFile(location, sha256(data), data)
    path = storage.local_root / name
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):
            raise ConfigError(
                f"{key}: cannot read {location}: it is {_kind(mode)}, expected a regular file"
            )
        return PromptFile(location, file_sha256(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {location}: {error.strerror}") from error


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no file")


def whole_location(place: ConfigPlace, location: str) -> str:
    """Return a prompt file's absolute path or URL; where its name is a link, the link's name.

    The name says of which format the file is, and what a link leads to often has another.
    """
    if "://" in location:
        return place.resolve(location)
    folder, name = posixpath.split(location)
    return posixpath.join(place.resolve(folder or "."), name)


def require_prompt_file(
    place: ConfigPlace, location: str, *, key: str, settings: StorageSection
) -> PromptFile:
    """Return the prompt file that a configuration names.

    Args:
        place: the configuration's, which a relative path starts from.
        location: what it names.
        key: the configuration's key that names it.
        settings: how a remote store is spoken to.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
        StorageError: the store does not answer.
    """
    whole = whole_location(place, location)
    found = find_prompt_file(whole, key=key, settings=settings)
    if found is None:
        raise missing_prompt_file(whole, key=key, settings=settings)
    return found


def missing_prompt_file(location: str, *, key: str, settings: StorageSection) -> ConfigError:
    """Return the error that a prompt file is not there, with the nearest name that is."""
    storage, name = _store(location, key=key, settings=settings)
    names = list[str]()
    with suppress(StorageError):  # there is no such folder either
        names = sorted(storage.names(""))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {storage.url(close[0])}?" if close else "correct the path or URL"
    return ConfigError(f"{key}: there is no file {location}; {hint}")


def _store(location: str, *, key: str, settings: StorageSection) -> tuple[Storage, str]:
    root, _, name = location.rpartition("/")
    try:
        if "://" not in location:
            return Storage(str(Path(location).parent), settings), Path(location).name
        if root.endswith("/"):
            raise ConfigError("it names no file in a folder: s3://bucket/folder/file")
        return Storage(root, settings), name
    except ConfigError as error:
        raise ConfigError(
            f"{key} = {shown(location)} is not a place to read from: {error}"
        ) from error
