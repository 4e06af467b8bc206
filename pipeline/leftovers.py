"""What killed writers leave: temporary files on a disk, unfinished multipart uploads on S3.

Neither is an object, so no listing of objects shows them, and both cost room.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.localfiles import TEMPORARY


@dataclass(frozen=True)
class Leftover:
    """An unfinished write."""

    name: str
    """Full name of the temporary file, or of the object that it was to be."""
    upload: str | None
    """Number of the multipart upload; None for a file."""
    age_s: float
    """Seconds since it was begun or last written, by the store's own clock."""


def unfinished_files(folder: str, now_s: float) -> Iterator[Leftover]:
    """Yield the temporary files below a folder.

    Args:
        folder: where to look.
        now_s: time of the clock that stamps the files.
    """
    for path in sorted(Path(folder).rglob(f"{TEMPORARY}*")):
        try:
            yield Leftover(str(path), None, now_s - os.stat(path).st_mtime)
        except FileNotFoundError:  # finished meanwhile
            continue


def unfinished_uploads(filesystem: Any, prefix: str) -> Iterator[Leftover]:
    """Yield the multipart uploads below a prefix of an S3 filesystem."""
    bucket, key, _ = filesystem.split_path(prefix)
    page: dict[str, Any] = {}
    while True:
        reply = filesystem.call_s3(
            "list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/", **page
        )
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


def abort_upload(filesystem: Any, leftover: Leftover) -> None:
    """End a multipart upload, so that its parts are freed."""
    bucket, key, _ = filesystem.split_path(leftover.name)
    filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=leftover.upload)
