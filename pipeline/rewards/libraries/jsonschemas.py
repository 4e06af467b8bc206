"""The grader `json_schema`: whether a response is JSON that its reference, a schema, allows.

Runs in the process of a grader, as a file of its own. Nothing is fetched: a reference to another
document leads nowhere. A schema that is none is an error.
"""

import json
import re
from typing import Any

from jsonschema import exceptions, validators
from referencing import Registry

FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
"""A block of code: the last one of a response counts, where it has any."""


def grade(response: str, reference: str, metadata: dict[str, Any]) -> float:
    """Return 1.0 where a response is JSON that the schema allows, else 0.0.

    Raises:
        ValueError: the schema is none.
    """
    try:
        schema = json.loads(reference)
        if not isinstance(schema, dict | bool):
            raise ValueError("expected an object")
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, RecursionError, AttributeError, exceptions.SchemaError) as error:
        words = str(error).split("\n")[0][:200]
        raise ValueError(f"the reference is no JSON schema: {words}") from None
    blocks = FENCED.findall(response)
    try:
        value = json.loads(blocks[-1] if blocks else response.strip())
    except (ValueError, RecursionError):
        return 0.0
    registry: Any = Registry()
    try:
        return float(kind(schema, registry=registry).is_valid(value))
    except RecursionError:
        return 0.0
