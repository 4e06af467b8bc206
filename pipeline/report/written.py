"""Numbers as people read them. Pure."""

import math
from collections.abc import Callable

from pipeline.report.catalogue import Form

ABSENT = "not stored"


def written(value: float | None, form: Form) -> str:
    """Return a value of a figure in words; None is not stored."""
    if value is None:
        return ABSENT
    return FORMS[form](value) if math.isfinite(value) else "no number"


def in_time(seconds: float) -> str:
    """Return a span of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    return f"{days} d {hours_left} h" if days else f"{hours} h {left} min"


def in_bytes(count: float) -> str:
    """Return a number of bytes with a fitting unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"


FORMS: dict[Form, Callable[[float], str]] = {
    "share": lambda value: f"{value:.1%}",
    "nats": lambda value: f"{value:.4f}" if abs(value) >= 1e-3 or not value else f"{value:.2e}",
    "number": _number,
    "count": lambda value: f"{value:,.0f}",
    "seconds": in_time,
    "bytes": in_bytes,
    "tiny": lambda value: f"{value:.3g}",
}
