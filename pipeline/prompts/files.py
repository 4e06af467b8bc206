"""Prompt files: where they are, and what their bytes are.

Promises: a local file is read in pieces; what is no regular file, such as a pipe, is never opened;
no more is fetched than `prompts.max_gb` allows. Must not: look into a file.
"""

import difflib
import gzip
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.prompts.sources.folders import (
    EXPECTED,
    chosen,
    is_prompt_file,
    names_folder,
    split_pattern,
)
from pipeline.prompts.sources.remote import Fetched, Remote, too_large
from pipeline.store.disk.files import file_sha256
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage
from schemas.config.run import RunConfig
from schemas.errors import ConfigError, StorageError
from schemas.fingerprint import fingerprint, sha256
from schemas.foreign import shown
from schemas.location import is_remote

PART = 1 << 40
"""Numbers of records that a file of a folder has at most: the next file's begin there."""


@dataclass(frozen=True)
class PromptFile:
    """A prompt file that is there, or a folder of some: its name in messages, digest and bytes."""

    location: str
    sha256: str
    content: Path | bytes
    parts: "tuple[PromptFile, ...]" = ()
    """The files of a folder."""
    most: int | None = None
    """Bytes that it may be, decompressed."""
    held: Fetched | None = None
    """What keeps a fetched file where it is."""

    @property
    def unit(self) -> str:
        """Return what the numbers of records count."""
        return "row" if self.location.endswith(".parquet") else "line"

    def place(self, number: int) -> str:
        """Return the name of a record in messages: `file:line`, or `file:row N`."""
        if self.parts:
            return self.parts[number // PART].place(number % PART)
        return f"{self.location}:{'row ' if self.unit == 'row' else ''}{number}"

    def named(self, number: int) -> str:
        """Return the name of a record beside another one of the same file or folder."""
        return self.place(number) if self.parts else f"{self.unit} {number}"

    def size(self) -> int:
        """Return the bytes of the file as it is stored."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def open(self) -> BinaryIO:
        """Return the file's bytes as a stream."""
        return self.content.open("rb") if isinstance(self.content, Path) else BytesIO(self.content)

    def lines(self) -> BinaryIO:
        """Return the file's lines as a stream, decompressed."""
        source = self.content if isinstance(self.content, Path) else BytesIO(self.content)
        if self.location.endswith(".gz"):
            return cast(BinaryIO, gzip.open(source))
        if self.location.endswith(".zst"):
            stored = pa.OSFile(str(source)) if isinstance(source, Path) else source
            return cast(BinaryIO, BufferedReader(pa.CompressedInputStream(stored, "zstd")))
        return self.open()

    def check_unchanged(self) -> None:
        """Make sure that a local file still is what its digest says.

        Raises:
            ConfigError: somebody wrote to it meanwhile.
        """
        for part in self.parts:
            part.check_unchanged()
        if self.parts or not isinstance(self.content, Path):
            return
        if file_sha256(self.content) != self.sha256:
            raise ConfigError(
                f"{self.location} changed while it was read: wait for its writer to end, then run "
                "the same command again"
            )


def find_prompt_file(location: str, *, key: str, config: RunConfig) -> PromptFile | None:
    """Return the prompt file or folder at an absolute path or URL, or None where there is none.

    Args:
        location: the path or URL.
        key: the configuration's key that names it.
        config: how a remote store is spoken to, and how much may be read.

    Raises:
        ConfigError: its name has another ending, its URL another scheme, or it cannot be read.
        StorageError: the store does not answer.
    """
    if "\0" in location:
        raise ConfigError(f"{key} = {location!r}: expected {EXPECTED}")
    if is_remote(location):
        return _remote(location, key, config)
    storage, name = _store(location, key=key, config=config)
    if storage.local_root is not None:
        return _local(storage.local_root / name, location, key, config)
    if names_folder(location):
        return _stored_folder(location, key, config)
    _check_ending(location, key)
    data = storage.get(name)
    return None if data is None else _held(location, data, key, config)


def _local(path: Path, location: str, key: str, config: RunConfig) -> PromptFile | None:
    try:
        if path.is_dir():
            return _local_folder(path, location, key, config)
        if "*" in path.name and not path.exists():
            return _local_folder(path.parent, location, key, config, pattern=path.name)
        _check_ending(location, key)
        if not stat.S_ISREG(mode := path.stat().st_mode):
            raise ConfigError(
                f"{key}: cannot read {location}: it is {_kind(mode)}, expected a regular file"
            )
        _check_size(path.stat().st_size, location, key, config)
        return PromptFile(location, file_sha256(path), path, most=_most(config))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {location}: {error.strerror}") from error


def _local_folder(
    folder: Path, location: str, key: str, config: RunConfig, *, pattern: str = "*"
) -> PromptFile:
    names = chosen((path.name for path in folder.iterdir()), pattern)
    base = str(folder)
    found = [_local(folder / name, f"{base}/{name}", key, config) for name in names]
    return _joined(location, [one for one in found if one is not None], key, config)


def _stored_folder(location: str, key: str, config: RunConfig) -> PromptFile | None:
    folder, pattern = split_pattern(location)
    storage, _ = _store(f"{folder}/any.jsonl", key=key, config=config)
    names = chosen(storage.names(""), pattern)
    parts, left = [], _most(config)
    for name in names:
        data = storage.get(name)
        if data is not None:
            left -= len(data)
            if left < 0:
                raise ConfigError(too_large(key, location, _most(config)))
            parts.append(_held(f"{folder}/{name}", data, key, config))
    return _joined(location, parts, key, config) if parts else None


def _remote(location: str, key: str, config: RunConfig) -> PromptFile | None:
    if not names_folder(location):
        _check_ending(location, key)
        fetched = Remote(location, key).fetch(_most(config))
        return None if fetched is None else _fetched(location, fetched, config)
    folder, pattern = split_pattern(location)
    urls = {url.rpartition("/")[2]: url for url in Remote(folder, key).names() or ()}
    parts, left = [], _most(config)
    for name in chosen(urls, pattern):
        fetched = Remote(urls[name], key).fetch(left)
        if fetched is not None:
            parts.append(_fetched(urls[name], fetched, config))
            left -= parts[-1].size()
    return _joined(location, parts, key, config) if parts else None


def _fetched(location: str, fetched: Fetched, config: RunConfig) -> PromptFile:
    path = fetched.path
    return PromptFile(location, file_sha256(path), path, most=_most(config), held=fetched)


def _held(location: str, data: bytes, key: str, config: RunConfig) -> PromptFile:
    _check_size(len(data), location, key, config)
    return PromptFile(location, sha256(data), data, most=_most(config))


def _joined(location: str, parts: Sequence[PromptFile], key: str, config: RunConfig) -> PromptFile:
    """Return a folder of prompt files, whose digest is that of their names and digests."""
    if not parts:
        raise ConfigError(
            f"{key}: {location} is a folder without prompt files: expected {EXPECTED}"
        )
    _check_size(sum(part.size() for part in parts), location, key, config)
    names = [[part.location.rpartition("/")[2], part.sha256] for part in parts]
    digest = sha256(fingerprint(names).encode())
    return PromptFile(location, digest, b"", tuple(parts), _most(config))


def _most(config: RunConfig) -> int:
    return int(config.prompts.max_gb * 2**30)


def _check_size(size: int, location: str, key: str, config: RunConfig) -> None:
    if size > _most(config):
        raise ConfigError(too_large(key, location, _most(config)))


def _check_ending(location: str, key: str) -> None:
    if not is_prompt_file(location):
        raise ConfigError(f"{key} = {location!r}: expected {EXPECTED}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no file")


def whole_location(place: ConfigPlace, location: str) -> str:
    """Return a prompt file's absolute path or URL; where its name is a link, the link's name.

    The name says of which format the file is, and what a link leads to often has another.
    """
    if is_remote(location):
        return location
    if "://" in location:
        return place.resolve(location)
    folder, name = posixpath.split(location)
    return posixpath.join(place.resolve(folder or "."), name)


def require_prompt_file(
    place: ConfigPlace, location: str, *, key: str, config: RunConfig
) -> PromptFile:
    """Return the prompt file that a configuration names.

    Args:
        place: the configuration's, which a relative path starts from.
        location: what it names.
        key: the configuration's key that names it.
        config: the configuration.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
        StorageError: the store does not answer.
    """
    whole = whole_location(place, location)
    found = find_prompt_file(whole, key=key, config=config)
    if found is None:
        raise missing_prompt_file(whole, key=key, config=config)
    return found


def missing_prompt_file(location: str, *, key: str, config: RunConfig) -> ConfigError:
    """Return the error that a prompt file is not there, with the nearest name that is."""
    if is_remote(location):
        return ConfigError(f"{key}: there is no file {location}; correct the URL")
    storage, name = _store(location, key=key, config=config)
    names = list[str]()
    with suppress(StorageError):  # there is no such folder either
        names = sorted(storage.names(""))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {storage.url(close[0])}?" if close else "correct the path or URL"
    return ConfigError(f"{key}: there is no file {location}; {hint}")


def _store(location: str, *, key: str, config: RunConfig) -> tuple[Storage, str]:
    location = location.rstrip("/")
    root, _, name = location.rpartition("/")
    try:
        if "://" not in location:
            return Storage(str(Path(location).parent), config.storage), Path(location).name
        if root.endswith("/"):
            raise ConfigError("it names no file in a folder: s3://bucket/folder/file")
        return Storage(root, config.storage), name
    except ConfigError as error:
        raise ConfigError(
            f"{key} = {shown(location)} is not a place to read from: {error}"
        ) from error
