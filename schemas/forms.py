"""Forms of what stored objects say: keys, names, digests, counts. Pure.

Owns what a key of a root may look like. Each form is one compiled pattern, for records are parsed
in their thousands.
"""

import re
from typing import Annotated

from pydantic import Field, StringConstraints

MAX_KEY = 1024
"""Characters of a key at most, as on S3."""

_UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Characters that a terminal obeys or that end a line."""

_PART = rf"(?!\.{{1,2}}(?:/|\Z))[^/\\{_UNSEEN}\ud800-\udfff]+"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")


def is_key(text: str) -> bool:
    """Return whether a text is a clean relative key: parts between `/`, none of them `..`."""
    return len(text) <= MAX_KEY and _KEY.fullmatch(text) is not None


def is_part(text: str) -> bool:
    """Return whether a text is one part of a clean key, such as a name in a listing."""
    return "/" not in text and is_key(text)


# What opd itself writes is narrower than what a store may hold.

_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"

Key = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(/{_NAME})*$", max_length=MAX_KEY)]
"""Key of another object."""

FileName = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$", max_length=255)]
"""A file in a flat folder; also a unit, a run, a teacher."""

TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer's named chat templates, the only one in a model's folder that is kept."""

ModelFile = Annotated[
    str, StringConstraints(pattern=rf"^({TEMPLATES}/)?{_NAME}$", max_length=len(TEMPLATES) + 256)
]
"""A file in the folder of a checkpoint."""

Label = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(/{_NAME})?$", max_length=255)]
"""What is graded, or who paid: one name, or two."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""What `fingerprint` returns."""

Mark = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$", max_length=64)]
"""What work or weights are known by, such as a digest: compared, never taken apart."""

Words = Annotated[str, StringConstraints(pattern=rf"^[^{_UNSEEN}]*$", max_length=4096)]
"""A line that people read."""

MOST = 2**63 - 1

Count = Annotated[int, Field(ge=0, le=MOST)]

Place = Annotated[int, Field(ge=0, le=2**64 - 1)]
"""First bits of a digest."""

Real = Annotated[float, Field(allow_inf_nan=False)]
