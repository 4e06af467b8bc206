"""What a look found: well, worth a look of a person, or wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.errors import OpdError

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    name: str
    state: State
    words: str
    figures: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    """Exit code of the error that it is; 0 where it is none."""


Look = Callable[[], Finding]


def looked(name: str, look: Look) -> Finding:
    """Return what a look finds; an error becomes a finding."""
    try:
        return look()
    except OpdError as error:
        return Finding(name, "failed", str(error), exit_code=error.exit_code)
