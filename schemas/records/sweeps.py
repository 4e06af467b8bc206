"""Records of clean-up."""

from typing import Annotated

from pydantic import Field

from schemas.forms import Mark
from schemas.records.record import Versioned


class SweepRecord(Versioned):
    """What a clean-up that is at work may delete; gone when it is done."""

    sweep: Mark
    """Random, one for each clean-up."""
    dead_after_s: Annotated[float, Field(ge=0.0, le=1e7)]
    """Age, by the store's clock, at which its process has ended or given up."""
    keys: tuple[str, ...]
    """Keys that may go; one that ends with `/` stands for all below it."""
