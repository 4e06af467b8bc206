"""The seal of a record: a digest of its own JSON, as the last member of it. Pure.

Promises: a sealed text of which any byte was changed is refused. Texts of before there were seals
pass: they have schema version 1, and what is sealed says one more than its fields have, so that an
older opd asks for a newer one instead of calling the digest damage.
"""

import re
from typing import Any, NamedTuple

from schemas.fingerprint import DIGEST_CHARS, canonical_json, sha256
from schemas.strictjson import parse_json
from schemas.tables import SCHEMA_VERSION

ABOVE = 1
"""What a sealed record says above the schema version of its fields."""

NEWEST = SCHEMA_VERSION + ABOVE
"""The newest schema version that is read."""

SEAL = re.compile(rb',"digest":"([0-9a-f]{%d})"\}' % DIGEST_CHARS)

SEAL_BYTES = len(b',"digest":""}') + DIGEST_CHARS


class SealError(ValueError):
    """A record does not fit its own digest, or has none and should."""


class Opened(NamedTuple):
    """What a stored text of JSON says, without its seal."""

    text: bytes
    value: Any
    is_sealed: bool


def sealed(words: dict[str, Any]) -> bytes:
    """Return the canonical JSON of a record with its seal, ended by a line feed.

    Raises:
        ValueError: the record cannot be JSON.
    """
    raised = {**words, "schema_version": words["schema_version"] + ABOVE}
    return with_seal(canonical_json(raised).encode())


def with_seal(text: bytes) -> bytes:
    """Return a JSON object that has a member, with its digest as the last one."""
    return text[:-1] + b',"digest":"%b"}\n' % _digest(text)


def opened(data: bytes) -> Opened:
    """Return what a text of JSON says, once it fits its digest.

    Raises:
        SealError: it does not, or has no seal and says that it is of a version that has.
        StrictJSONError: it is no JSON.
    """
    end = len(data) - data.endswith(b"\n")
    seal = SEAL.fullmatch(data, max(end - SEAL_BYTES, 0), end)
    text = data if seal is None else data[: seal.start()] + b"}"
    if seal is not None and (found := _digest(text)) != seal[1]:
        raise SealError(
            f"it does not fit its own digest: found {found.decode()}, it says {seal[1].decode()}"
        )
    value = parse_json(text)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if seal is None and isinstance(version, int) and ABOVE < version <= NEWEST:
        raise SealError(f"it has schema version {version} and does not end with its own digest")
    return Opened(text, value, seal is not None)


def _digest(text: bytes) -> bytes:
    return sha256(text)[:DIGEST_CHARS].encode()
