"""What every table of the TOML is made of: a frozen model, its kinds of values, tuning fields."""

import keyword
import re
import sys
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from schemas.foreign import is_control, printable
from schemas.location import check_source, parse_location

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

DEVICE_PATTERN = r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]{1,2})?)$"

EXPECTED = {
    NAME_PATTERN: "expected a name of letters, digits, '.', '_' and '-', at most 64 of them, the "
    "first a letter or a digit",
    DEVICE_PATTERN: "expected 'auto', 'cpu', 'cuda', 'cuda:0' or the like, 'mps' or 'xpu'",
}
"""Patterns of texts → what a message says in their place."""

MOST = 2**31 - 1
"""Largest count: that of 32 bits, which token ids and rows have."""


Positive = Annotated[int, Field(gt=0, le=MOST)]

Natural = Annotated[int, Field(ge=0, le=MOST)]

Few = Annotated[int, Field(gt=0, le=65536)]
"""A count of things that one machine holds or does at once."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]

Seconds = Annotated[float, Field(ge=0.001, le=1e6)]
"""A time to wait: what sockets, timers and clocks of any system can count."""

Temperature = Annotated[float, Field(ge=1e-6, le=10.0)]
"""Divides logits: a smaller one makes infinities of them."""


JOINERS = "\u200c\u200d"
"""Unseen characters that some scripts cannot be written without."""


def _clean(text: str) -> str:
    if not text.strip() or text != text.strip():
        raise ValueError("it is empty, or begins or ends with white space")
    if not text.isprintable() and any(is_control(c) and c not in JOINERS for c in text):
        raise ValueError(f"it has characters that nobody sees: {printable(text[:200])}")
    return text


def _placed(text: str) -> str:
    parse_location(text)
    return text


def _sourced(text: str) -> str:
    check_source(text)
    return text


def _no_url(text: str) -> str:
    if parse_location(text).scheme:
        raise ValueError(
            "models are not read from URLs: give the path of a folder, or a hub id such as "
            "Qwen/Qwen3-0.6B with its revision"
        )
    return text


Text = Annotated[str, Field(max_length=1024), AfterValidator(_clean)]
"""A name that others gave: of a model, a variant, a module."""

Place = Annotated[str, Field(max_length=4096), AfterValidator(_clean), AfterValidator(_placed)]
"""A path, or a URL of a store."""

SourcePlace = Annotated[
    str, Field(max_length=4096), AfterValidator(_clean), AfterValidator(_sourced)
]
"""A path, or a URL to read from: of a store, or of a service that fsspec knows."""

ModelPlace = Annotated[str, Field(max_length=4096), AfterValidator(_clean), AfterValidator(_no_url)]
"""A path, or the id of a model on the hub."""

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


def file_and_function(name: str) -> tuple[str, str] | None:
    """Return the file and the function that a text names, or None where it has another form.

    The form `module:function` names the file `module.py`; `module.py:function` does too.
    """
    file, _, function = name.partition(":")
    stem = file.removesuffix(".py")
    fits = re.fullmatch(r"[\w-]+" if file.endswith(".py") else r"\w+", stem)
    if not fits or not function.isidentifier() or keyword.iskeyword(function):
        return None
    return f"{stem}.py", function


def tuning(default: Any, **kwargs: Any) -> Any:
    """Return a field whose value is not part of the identity of a run."""
    return Field(default, json_schema_extra={"identity": False}, **kwargs)


def later(default: Any, **kwargs: Any) -> Any:
    """Return a field that came later: it is part of a run's identity only where it is set.

    So the identity of runs that began before it existed stays as it was.
    """
    return Field(default, json_schema_extra={"later": True}, **kwargs)


Megabytes = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Memory in MiB."""

CHUNK_TOKENS = "logit_chunk_tokens"


def chunk_in_bytes(given: Any) -> Any:
    """Return a table without the key that counted positions, whatever the vocabulary; warn of it.

    TOMLs of runs that began with it stay as they are: it never was part of a run's identity.
    """
    if not isinstance(given, dict) or CHUNK_TOKENS not in given:
        return given
    print(
        f"opd: {CHUNK_TOKENS} is not used any more: write logit_chunk_mb, the MiB of logits that "
        "exist at once (positions × vocabulary × 4 bytes: 256 of 151,936 ids were "
        "logit_chunk_mb = 148), or take the key out",
        file=sys.stderr,
    )
    return {key: value for key, value in given.items() if key != CHUNK_TOKENS}


class Section(BaseModel):
    """A frozen table of the TOML that refuses unknown keys, infinities and NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: Python takes them for 1 and 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list) else [value]
        if bool in map(type, values) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("is not a key for true or false")
        return value
