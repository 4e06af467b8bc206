"""What every table of the TOML is made of: a frozen model, its kinds of values, tuning fields."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

Positive = Annotated[int, Field(gt=0)]

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]

Dtype = Literal["float32", "bfloat16", "float16"]

UNFINISHED = "\ufffd"
"""The character that stands for bytes which are no whole character."""


def _checked_texts(texts: tuple[str, ...]) -> tuple[str, ...]:
    twice = [text for index, text in enumerate(texts) if text in texts[:index]]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice; remove one")
    if any(UNFINISHED in text for text in texts):
        raise ValueError(
            "U+FFFD stands for bytes that are no character, so no response ends with it; remove it"
        )
    return texts


StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]

StopTexts = Annotated[tuple[StopText, ...], Field(max_length=16), AfterValidator(_checked_texts)]


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
