"""Memory by what takes it: the type that estimates share, and bytes in words. Pure."""

MIB, GIB = 1 << 20, 1 << 30

Parts = dict[str, int]
"""What → bytes."""


def total(parts: Parts) -> int:
    """Return the bytes of all parts."""
    return sum(parts.values())
