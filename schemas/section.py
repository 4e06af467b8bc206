"""What every table of the TOML is made of: a frozen model, its kinds of values, tuning fields."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16", "float16"]
UNFINISHED = "\ufffd"
"""The character that stands for bytes which are no whole character."""


def tuning(default: Any, **kwargs: Any) -> Any:
    """Return a field whose value is not part of the identity of a run."""
    return Field(default, json_schema_extra={"identity": False}, **kwargs)


def later(default: Any, **kwargs: Any) -> Any:
    """Return a field that came later: it is part of a run's identity only where it is set.

    So the identity of runs that began before it existed stays as it was.
    """
    return Field(default, json_schema_extra={"later": True}, **kwargs)


class Section(BaseModel):
    """A frozen table of the TOML that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
