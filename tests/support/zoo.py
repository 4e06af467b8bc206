"""The zoo's table: which models, and what must come of each. Imports neither torch nor opd."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "zoo" / "zoo.toml"

WORKS = "works"


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str
    kind: str
    """Its model_type."""
    about: str
    """What makes it different."""
    hf: str
    """`works`, or a phrase of the refusal; so with the other engine."""
    vllm: str
    model: str | None = None
    """Its class, where that is not the causal one."""
    changes: dict[str, Any] = field(default_factory=dict)


def entries() -> list[Entry]:
    """Return the models of the table."""
    return [Entry(**row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["model"]]
