"""Records of a prompt file of any kind, in chunks that fit into memory."""

from collections.abc import Iterator, Mapping

from pipeline.prompts.files import PART, PromptFile
from pipeline.prompts.lines import jsonl_records
from pipeline.prompts.table import parquet_records
from pipeline.shards.extent import GROWTH, SMALL
from schemas.errors import ConfigError

Numbered = tuple[int, object]
"""A record's number in its file, from 1, and its JSON value, or a `BadRecord` saying why not."""

CHUNK_RECORDS, CHUNK_BYTES = 4096, 1 << 27
"""Records that are tokenised in one call and become one table, and about how many bytes."""


def record_chunks(
    file: PromptFile, columns: Mapping[str, str] | None = None
) -> Iterator[list[Numbered]]:
    """Yield the records of a file, or of the files of a folder, in order, some at a time.

    Args:
        file: the file or folder.
        columns: our name of a column → that of the files, which must have it where they name their
            columns once.

    Raises:
        ConfigError: the file as a whole cannot be read, has none of the prompt columns, or becomes
            far larger than it is.
    """
    left = file.most
    for index, part in enumerate(file.parts or (file,)):
        for chunk, taken in _chunks(part, columns or {}):
            left = None if left is None else left - taken
            if left is not None and left < 0:
                words = (
                    f"{(file.most or 0) / 2**30:.3g} GiB decompressed, which prompts.max_gb allows"
                )
                raise ConfigError(
                    f"{file.location} is larger than {words}: raise it, or name fewer files"
                )
            yield [(PART * index + number, value) for number, value in chunk] if index else chunk


def _chunks(file: PromptFile, columns: Mapping[str, str]) -> Iterator[tuple[list[Numbered], int]]:
    """Yield the records of one file, and how many bytes each chunk took."""
    sized = parquet_records(file, columns) if file.unit == "row" else jsonl_records(file)
    chunk, held, total = list[Numbered](), 0, 0
    most = max(SMALL, GROWTH * file.size())
    for number, value, size in sized:
        chunk.append((number, value))
        held, total = held + size, total + size
        if total > most:
            raise ConfigError(
                f"{file.place(number)}: the file's {file.size()} bytes have become more than "
                f"{most} by here, as those of no real prompts do: give it uncompressed, as JSONL"
            )
        if len(chunk) == CHUNK_RECORDS or held >= CHUNK_BYTES:
            yield chunk, held
            chunk, held = [], 0
    if chunk:
        yield chunk, held
