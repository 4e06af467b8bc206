"""Digests that identify values: canonical JSON, bytes and token sequences. Pure.

Promises: equal values have equal digests on every machine; a changed field changes the digest.
"""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

DIGEST_CHARS = 32
"""Hexadecimal characters of a short digest (128 bits), used in keys and identities."""


def canonical_json(value: Any) -> str:
    """Return JSON text that depends on the value alone: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """Return the short digest of a JSON value."""
    return sha256(canonical_json(value).encode())[:DIGEST_CHARS]


def sha256(data: bytes) -> str:
    """Return the full hexadecimal sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sequence_digest(prompt_ids: ArrayLike, response_ids: ArrayLike) -> str:
    """Return the digest of exactly what a teacher reads: prompt ids, then response ids.

    The prompt length is part of it, so the same ids split elsewhere are another sequence.
    """
    prompt = np.asarray(prompt_ids, dtype="<i4")
    response = np.asarray(response_ids, dtype="<i4")
    head = np.asarray([len(prompt), len(response)], dtype="<i8")
    return sha256(head.tobytes() + prompt.tobytes() + response.tobytes())[:DIGEST_CHARS]
