"""Units of a manifest: numbered, once each, in their folder, adding up to what it says. Pure."""

from collections.abc import Sequence

from schemas.keys import unit_name
from schemas.records.shards import UnitShard, not_content


def flaw_of_units(
    units: Sequence[UnitShard], *, folder: str, rows: int, tokens: int, distinct: bool = True
) -> str | None:
    """Return how the units of a manifest contradict it, or None.

    Args:
        units: the units.
        folder: where their shards lie.
        rows: what the manifest says that all of them have.
        tokens: as `rows`.
        distinct: whether no two units may share a shard.
    """
    names, expected = [u.unit for u in units], [unit_name(i) for i in range(len(units))]
    if names != expected:
        wrong, right = next(p for p in zip(names, expected, strict=True) if p[0] != p[1])
        return f"its units are not numbered from 0: {wrong} stands in the place of {right}"
    stray = [unit.shard for unit in units if not unit.shard.is_in(folder)]
    if stray:
        return f"{not_content(stray[0])} in {folder}"
    if distinct and len({unit.shard.sha256 for unit in units}) < len(units):
        return "two of its units have the same shard"
    found = sum(unit.shard.rows for unit in units), sum(unit.shard.tokens for unit in units)
    if found != (rows, tokens):
        return f"its shards have {found[0]} rows and {found[1]} tokens, it says {rows} and {tokens}"
    return None
