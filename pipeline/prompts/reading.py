"""Records of a prompt file of any kind, in chunks that fit into memory."""

from collections.abc import Iterator

from pipeline.prompts.files import PromptFile
from pipeline.prompts.lines import jsonl_records
from pipeline.prompts.table import parquet_records
from pipeline.shards.extent import GROWTH, SMALL
from schemas.errors import ConfigError

Numbered = tuple[int, object]
"""A record's number in its file, from 1, and its JSON value, or a `BadRecord` saying why not."""

CHUNK_RECORDS, CHUNK_BYTES = 4096, 1 << 27
"""Records that are tokenised in one call and become one table, and about how many bytes."""


def record_chunks(file: PromptFile) -> Iterator[list[Numbered]]:
    """Yield the records of a file in its order, some at a time.

    Raises:
        ConfigError: the file as a whole cannot be read, has none of the prompt columns, or becomes
            far larger than it is.
    """
    sized = parquet_records(file) if file.unit == "row" else jsonl_records(file)
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
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
