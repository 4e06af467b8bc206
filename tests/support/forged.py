"""Records as somebody else might write them: changed, and with a digest that fits all the same."""

import json
from collections.abc import Mapping
from typing import Any

from schemas.records.seal import with_seal


def forged(value: Any) -> bytes:
    """Return the JSON of a value; with the right digest, where it is a record that carries one."""
    if not (isinstance(value, Mapping) and "digest" in value):
        return json.dumps(value).encode()
    words = {name: part for name, part in value.items() if name != "digest"}
    return with_seal(json.dumps(words).encode())
