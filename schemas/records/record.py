"""What records are made of: frozen JSON objects that refuse unknown keys and newer versions.

Promises: what is written can be read; what is read has the forms of `schemas/forms.py`, and fits
the digest that it carries.

Nothing in a record depends on time, attempt or machine, except the `attempt` of a commit: the same
work gives the same records.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from schemas.errors import DataError
from schemas.fingerprint import canonical_json
from schemas.foreign import excerpt
from schemas.records.seal import ABOVE, NEWEST, SealError, opened, sealed
from schemas.strictjson import StrictJSONError
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

    def flaw(self) -> str | None:
        """Return how the record contradicts itself, or None."""
        return None

    def misplaced(self, key: str) -> str | None:
        """Return why the record cannot be the one of a key, or None: what it is of, in words."""
        return None

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the record, ended by a line feed.

        Raises:
            DataError: whoever reads it would refuse it.
        """
        name = type(self).__name__
        try:
            data = self._encoded(self.model_dump(mode="json", warnings="none"))
        except ValueError as error:  # NaN, an infinity or half a character
            raise DataError(f"a {name} is not written: it cannot be JSON: {error}") from error
        self.from_bytes(data, where=f"what would be written as a {name}")
        return data

    @staticmethod
    def _encoded(words: dict[str, Any]) -> bytes:
        return canonical_json(words).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Return the record written in JSON, where it is one that `to_bytes` might have written.

        Raises:
            DataError: not JSON, not this kind of record, of a newer schema version, or one that
                contradicts itself or its digest.
        """
        try:
            text, value, is_sealed = opened(data)
            _refuse_newer(value, where)
            above = ABOVE if is_sealed else 0
            found = cls.model_validate_json(text, strict=True, context=above)  # see `_known`
        except (StrictJSONError, SealError) as error:
            raise _refusal(cls, where, f"the whole object: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            location = ".".join(excerpt(str(part)) for part in first["loc"]) or "the whole object"
            raise _refusal(cls, where, f"{location}: {first['msg']}") from error
        if flaw := found.flaw():
            raise _refusal(cls, where, f"the whole object: {flaw}")
        return found


def _refusal(kind: type[Record], where: str, reason: str) -> DataError:
    return DataError(
        f"{where} is not a {kind.__name__}: {reason}. The object is damaged, or another program "
        "wrote it. Restore it; or delete it, and run the command that makes it again"
    )


class Versioned(Record):
    """A record that says which schema version wrote it, and carries its digest where it stands."""

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    """That of its fields; sealed JSON says one more."""

    @staticmethod
    def _encoded(words: dict[str, Any]) -> bytes:
        return sealed(words)

    @field_validator("schema_version")
    @classmethod
    def _known(cls, version: int, info: ValidationInfo) -> int:
        version -= info.context or 0
        if version < 1:
            raise ValueError("records of schema version 1 have no digest")
        if version > SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is newer than {SCHEMA_VERSION}")
        return version


def _refuse_newer(value: Any, where: str) -> None:
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > NEWEST:
        raise DataError(
            f"{where} has schema version {version}; this opd reads up to {NEWEST}: "
            "install a newer opd"
        )
