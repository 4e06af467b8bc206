"""Prompt files: where they are, what their bytes are, and their records one by one.

Promises: a local file is read in pieces; every record comes with its number in the file; what is
no record at all comes as a `BadRecord`. Must not: judge what a record holds (`promptrecord` does).
"""

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.prompts.records import KINDS, BadRecord
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage, file_sha256
from schemas.config.storage import StorageSection
from schemas.errors import ConfigError
from schemas.fingerprint import sha256
from schemas.foreign import shown

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")

BATCH_ROWS = 1024
"""Parquet rows turned into Python values at once."""


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
    if not location.endswith(EXTENSIONS):
        raise ConfigError(
            f"{key} = {location!r}: expected a file that ends in {', '.join(EXTENSIONS)}"
        )
    storage, name = _store(location, key=key, settings=settings)
    if storage.local_root is None:
        data = storage.get(name)
        return None if data is None else PromptFile(location, sha256(data), data)
    path = storage.local_root / name
    try:
        return PromptFile(location, file_sha256(path), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {location}: {error.strerror}") from error


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
    whole = place.resolve(location)
    found = find_prompt_file(whole, key=key, settings=settings)
    if found is None:
        raise missing_prompt_file(whole, key=key, settings=settings)
    return found


def missing_prompt_file(location: str, *, key: str, settings: StorageSection) -> ConfigError:
    """Return the error that a prompt file is not there, with the nearest name that is."""
    storage, name = _store(location, key=key, settings=settings)
    close = difflib.get_close_matches(name, sorted(storage.names("")), n=1, cutoff=0.4)
    hint = f"did you mean {storage.url(close[0])}?" if close else "correct the path or URL"
    return ConfigError(f"{key}: there is no file {location}; {hint}")


def read_records(file: PromptFile) -> Iterator[tuple[int, object]]:
    """Yield each record with its number, from 1: a JSON value, or a `BadRecord` saying why not.

    Blank lines of a JSONL file are no records, but count as lines.

    Raises:
        ConfigError: the file as a whole cannot be read, or has none of the prompt columns.
    """
    if file.location.endswith(".parquet"):
        yield from _parquet_rows(file)
        return
    try:
        with file.lines() as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, _json_value(text.rstrip())
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{file.location} cannot be read: {error}; make it again") from error


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


def _json_value(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord("not_utf8", f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRecord("malformed_json", f"malformed JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 100 000 brackets
        return BadRecord("malformed_json", f"malformed JSON: {error}")


def _parquet_rows(file: PromptFile) -> Iterator[tuple[int, object]]:
    try:
        with file.open() as raw:
            parquet = pq.ParquetFile(raw)
            _check_columns(file, parquet.schema_arrow.names)
            number = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                for value in _batch_values(batch):
                    number += 1
                    yield number, value
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file.location} is not a readable Parquet file: {error}") from error


def _check_columns(file: PromptFile, names: list[str]) -> None:
    if set(names).isdisjoint(KINDS):
        close = next((c for k in KINDS for c in difflib.get_close_matches(k, names, n=1)), None)
        hint = f"; did you mean to rename {close!r}?" if close else ""
        raise ConfigError(
            f"{file.location} has no column {', '.join(KINDS[:-1])} or {KINDS[-1]}, found "
            f"{names}{hint}"
        )


def _batch_values(batch: pa.RecordBatch) -> list[object]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        return [_row_value(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _row_value(row: pa.RecordBatch) -> object:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord("not_utf8", f"not UTF-8: {error.reason} at byte {error.start + 1}")
