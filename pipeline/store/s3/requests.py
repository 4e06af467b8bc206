"""Requests to S3: objects read and listed so that it is seen whether anything comes.

Promises: bytes that arrive are told to the attempt that waits for them; what the length, the
checksum or the tag of a reply contradicts is not believed.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.store.attempts import ENTRY_BYTES, Attempt, current
from pipeline.store.backend import Leftover
from schemas.errors import DataError


def unfinished_uploads(filesystem: Any, prefix: str) -> Iterator[Leftover]:
    """Yield the multipart uploads below a prefix of an S3 filesystem."""
    bucket, key, _ = filesystem.split_path(prefix)
    page: dict[str, Any] = {}
    while True:
        reply = filesystem.call_s3(
            "list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/", **page
        )
        current().arrived(ENTRY_BYTES * (1 + len(reply.get("Uploads", []))))
        now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        for found in reply.get("Uploads", []):
            age_s = (now - found["Initiated"]).total_seconds()
            yield Leftover(f"{bucket}/{found['Key']}", found["UploadId"], age_s)
        if not reply.get("IsTruncated"):
            return
        page = {
            "KeyMarker": reply["NextKeyMarker"],
            "UploadIdMarker": reply["NextUploadIdMarker"],
        }


PIECE_BYTES = 1 << 18
"""Bytes that are read at a time, so that it is seen whether any come."""

PART_BYTES = 16 << 20
"""Bytes of a large object that one request brings into a file."""

PARTS_AT_ONCE = 8


TAGGED_BYTES = 4 << 20
"""Longest object whose tag is looked at; shards, which are longer, have a digest of their own."""

READS = 3
"""Times that an object is read at most before its bytes count as damaged."""


class Tags:
    """What is known of a store's tags: most are the MD5 of an object in one piece."""

    _are_digests = False

    def fit(self, tag: str, data: bytes) -> bool | None:
        """Return whether a tag fits bytes; None where this store's may be something else."""
        if len(data) > TAGGED_BYTES or re.fullmatch(r'"?[0-9a-f]{32}"?', tag) is None:
            return True
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == tag.strip('"'):
            self._are_digests = True
            return True
        return False if self._are_digests else None


async def read_object(filesystem: Any, name: str, attempt: Attempt, tags: Tags) -> bytes:
    """Return an object's bytes; those that its tag contradicts are read again.

    Raises:
        DataError: they always come so.
    """
    bucket, key, _ = filesystem.split_path(name)
    seen: list[bytes] = []
    while len(seen) < READS:
        reply = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        pieces: list[bytes] = []
        await _take(reply["Body"], attempt, pieces.append)
        data = b"".join(pieces)
        fits = tags.fit(str(reply.get("ETag", "")), data)
        if fits or (fits is None and data in seen):
            return data
        seen.append(data)
    raise DataError(
        f"s3://{name} came {READS} times with bytes that its tag {reply['ETag']} contradicts: it "
        "is damaged in the store or on its way. Restore it, or look for a proxy that changes it"
    )


async def download_object(filesystem: Any, name: str, path: Path, attempt: Attempt) -> None:
    """Write a file from an object; a large one by several requests at once."""
    import asyncio

    bucket, key, _ = filesystem.split_path(name)
    head = await filesystem._call_s3("head_object", Bucket=bucket, Key=key)
    some = asyncio.Semaphore(PARTS_AT_ONCE)

    async def fetch(start: int) -> None:
        async with some:
            span = f"bytes={start}-{start + PART_BYTES - 1}"
            only = {"Range": span} if head["ContentLength"] > PART_BYTES else {}
            reply = await filesystem._call_s3(
                "get_object", Bucket=bucket, Key=key, IfMatch=head["ETag"], **only
            )
            with path.open("r+b") as file:
                file.seek(start)
                await _take(reply["Body"], attempt, file.write)

    path.write_bytes(b"")
    try:
        async with asyncio.TaskGroup() as group:
            for start in range(0, max(1, head["ContentLength"]), PART_BYTES):
                group.create_task(fetch(start))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _take(body: Any, attempt: Attempt, use: Callable[[bytes], object]) -> None:
    """Read a reply to its end, where its length and checksum are verified."""
    try:
        while piece := await body.read(PIECE_BYTES):
            attempt.arrived(len(piece))
            use(piece)
    finally:
        body.close()


async def list_folder(filesystem: Any, folder: str, attempt: Attempt) -> list[dict[str, str]]:
    """Return what is directly in a folder, as fsspec does, page by page."""
    bucket, key, _ = filesystem.split_path(folder)
    where = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else "", "Delimiter": "/"}
    found: list[dict[str, str]] = []
    page: dict[str, Any] = {"IsTruncated": True}
    while page.get("IsTruncated"):
        if "NextContinuationToken" in page:
            where["ContinuationToken"] = page["NextContinuationToken"]
        page = await filesystem._call_s3("list_objects_v2", **where)
        files, folders = page.get("Contents", []), page.get("CommonPrefixes", [])
        found += [{"name": f"{bucket}/{file['Key']}", "type": "file"} for file in files]
        found += [{"name": f"{bucket}/{one['Prefix']}", "type": "directory"} for one in folders]
        attempt.arrived(ENTRY_BYTES * (1 + len(files) + len(folders)))
    return found
