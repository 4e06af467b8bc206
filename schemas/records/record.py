"""What records are made of: frozen JSON objects that refuse unknown keys and newer versions.

Nothing in a record depends on time, attempt or machine, except the `attempt` of a commit: the same
work gives the same records.
"""

import json
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from schemas.errors import DataError
from schemas.fingerprint import canonical_json
from schemas.tables import SCHEMA_VERSION


class Record(BaseModel):
    """A frozen JSON object that refuses unknown keys and newer schema versions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later and are left out where they say nothing: digests of records that are
    older stay as they were, and an older opd reads what does not need the field."""

    @model_serializer(mode="wrap")
    def _words(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        words: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        silent = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in words.items() if name not in silent}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the record, ended by a line feed."""
        return canonical_json(self.model_dump(mode="json")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Return the record written in JSON.

        Raises:
            DataError: not JSON, not this kind of record, or of a newer schema version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            _refuse_newer(data, where)
            first = error.errors()[0]
            location = ".".join(str(part) for part in first["loc"]) or "the whole object"
            raise DataError(
                f"{where} is not a {cls.__name__}: {location}: {first['msg']}. The object is "
                "damaged, or another program wrote it"
            ) from error


class Versioned(Record):
    """A record that says which schema version wrote it."""

    schema_version: int = SCHEMA_VERSION

    @field_validator("schema_version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is newer than {SCHEMA_VERSION}")
        return version


def _refuse_newer(data: bytes, where: str) -> None:
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, TypeError, KeyError):
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {version}; this opd reads up to {SCHEMA_VERSION}: "
            "install a newer opd"
        )
