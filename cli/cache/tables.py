"""Tables of the cache commands, for people."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cli.output import in_bytes, print_table
from cli.terminal import say
from pipeline.cache.scorers import SHORT
from pipeline.upkeep.inventory import CacheEntry, Use

if TYPE_CHECKING:
    from pipeline.upkeep.garbage import Collection, Garbage
    from pipeline.upkeep.stats import CacheFigures
    from pipeline.upkeep.verify import Verification

HISTOGRAMS = {
    "mass": "mass in the top-k",
    "tail": "log mass of the tail, nats",
    "entropy": "entropy, nats",
}


def print_caches(root: str, entries: Sequence[CacheEntry]) -> None:
    """Print the scorers of a root."""
    titles = ("scorer", "teacher", "codec", "k", "rows", "tokens", "bytes", "used by")
    cells = [
        [
            entry.scorer[:SHORT],
            entry.teacher,
            entry.codec,
            str(entry.k),
            f"{entry.rows:,}",
            f"{entry.tokens:,}",
            in_bytes(entry.bytes),
            uses_in_words(entry.uses),
        ]
        for entry in entries
    ]
    noun = "scorer" if len(entries) == 1 else "scorers"
    print_table(f"{len(entries)} {noun} at {root}", titles, cells, left=(0, 1, 2, 7))


def print_verifications(root: str, found: "Sequence[Verification]") -> None:
    """Print what was verified, then each object that is wrong, by name."""
    kinds = ("damaged", "missing", "foreign")
    titles = ("scorer", "commits", "checked", "rows", "tokens", "bytes", *kinds)
    cells = [
        [
            one.scorer[:SHORT],
            *(f"{count:,}" for count in (one.commits, one.checked, one.rows, one.tokens)),
            in_bytes(one.bytes),
            *(str(len(getattr(one, kind))) for kind in kinds),
        ]
        for one in found
    ]
    print_table(f"caches at {root}", titles, cells)
    for kind in kinds:
        for one in found:
            for fault in getattr(one, kind):
                say(f"{kind}: {fault.key}: {fault.reason}")


def print_figures(found: "CacheFigures") -> None:
    """Print the figures of one scorer."""
    rate = "" if found.bytes_per_token is None else f", {found.bytes_per_token:.1f} bytes per token"
    title = f"scorer {found.scorer[:SHORT]}: {found.rows:,} rows, {found.tokens:,} tokens{rate}"
    names = ("tokens", "topk_mass", "tail_mass", "entropy", "token_probability")
    rows = [*found.positions, *([] if found.all is None else [found.all])]
    cells = [
        [_span(row), f"{row['tokens']:,}", *(_mean(row[name]) for name in names[1:])]
        for row in rows
    ]
    print_table(title, ("position", *(name.replace("_", " ") for name in names)), cells)
    for name, edges in found.edges.items() if found.all is not None else ():
        counts = (found.all or {})[f"{name}_histogram"]
        if not any(counts):
            continue
        spans = [f"{_edge(a)} to {_edge(b)}" for a, b in pairwise(edges)]
        shares = [f"{count / found.tokens:.1%}" for count in counts]
        print_table(f"{HISTOGRAMS[name]}: share of tokens", spans, [shares], left=())
    odd = [[name, *map(str, counts.values())] for name, counts in found.odd.items()]
    titles = ("column", "NaN", "-inf", "exactly 0", "suspicious 0")
    print_table("odd values", titles, odd)
    ends = [
        [reason, str(row["rows"]), _mean(row["probability"])]
        for reason, row in found.last_token.items()
    ]
    print_table("last token", ("ended by", "rows", "teacher's mean probability"), ends)
    for key in found.refused:
        say(f"left out, for it cannot be read: {key}")


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def print_collection(
    root: str, found: "Collection", objects: "Sequence[Garbage]", *, deleted: bool
) -> None:
    """Print what went or would go, and what stays although no run names it."""
    from pipeline.upkeep.garbage import totals

    cells = [[name, f"{n:,}", in_bytes(size)] for name, (n, size) in totals(objects).items()]
    cells.append(["unfinished writes", f"{len(found.leftovers):,}", ""])
    title = f"{'deleted' if deleted else 'would be deleted'} at {root}"
    print_table(title, ("what", "objects", "bytes"), cells)
    if found.young:
        say(f"{found.young:,} objects are not named either, but too young")
    for one in found.unused:
        size = in_bytes(sum(part.num_bytes for part in one.objects))
        why = "too young" if one.is_young else "--unused-scorers deletes it"
        why = "a command works on it now" if one.is_held else why
        say(f"no run names scorer {one.scorer} ({size}): {why}")
    for scorer in found.pinned:
        say(f"pinned: {scorer}")
    if not deleted:
        say("nothing was deleted; --delete does it")


def uses_in_words(uses: Sequence[Use]) -> str:
    """Return rounds by run and teacher, such as `demo 0-3 (main)`."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for use in uses:
        grouped.setdefault((use.run, use.teacher), []).append(use.round)
    parts = [f"{run} {_ranges(found)} ({teacher})" for (run, teacher), found in grouped.items()]
    return ", ".join(parts) or "no round"


def _span(row: dict[str, Any]) -> str:
    if "from" not in row:
        return "all"
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}-{row['to']}"


def _edge(edge: float | None) -> str:
    return "…" if edge is None else f"{edge:g}"


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
