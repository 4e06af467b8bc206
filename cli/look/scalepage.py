"""A run on paper, as it is printed: sizes, limits, prices, and memory by stage."""

import importlib.util
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.output import in_bytes, print_json, print_table
from cli.terminal import say, warn
from pipeline.runs.run import Run
from pipeline.upkeep.scale import PUTS_PER_S, Scale, scale

if TYPE_CHECKING:
    from pipeline.sizing.memory import Memory


def show_scale(run: Run, days: float, *, as_json: bool) -> None:
    """Print a run of this kind at many sizes, what gives out first, and what memory it needs."""
    from pipeline.runs.forecast import forecast
    from pipeline.runs.tasks import next_round

    first = next_round(run, run.config.run.rounds)
    found = scale(run.config, forecast(run, first=first, rounds=first + 1), days=days)
    memory = _memory(run)
    if as_json:
        told = None if memory is None else _as_json(memory)
        print_json({"stage": "plan", "run": run.name, **asdict(found), "memory": told})
        return
    _print_scale(run, found, days)
    if memory is None:
        say("", "what memory the stages need is told where torch is: pip install 'opd[train]'")
    else:
        _print_memory(memory)


def _print_scale(run: Run, found: Scale, days: float) -> None:
    titles = ("tokens", "sequences", "objects", "index", "scores", "writes/s", "reads/s")
    rows = [
        [f"{one.tokens:,}", f"{one.rows:,}", f"{one.objects:,}", in_bytes(one.index_bytes)]
        + [in_bytes(one.store_bytes), f"{one.puts_per_s:,.2f}", f"{one.gets_per_s:,.2f}"]
        + [f"{one.requests_usd:,.0f}", f"{one.month_usd:,.0f}"]
        + ["–" if one.workers is None else f"{one.workers:,}"]
        for one in found.sizes
    ]
    print_table(
        f"a run like {run.name}, done in {days:g} days, from its {found.basis}",
        (*titles, "requests, $", "$ a month", "scoring workers"),
        rows,
        left=(),
    )
    say("", f"what gives out, in order ({PUTS_PER_S:,} writes a second are S3's for one prefix):")
    for limit in found.limits:
        say(f"  at {limit.tokens:.1e} tokens: {limit.what}")
    columns = list(next(iter(found.month_usd.values())))
    prices = [
        [codec, *(f"{price:.2f}" for price in by_k.values())]
        for codec, by_k in found.month_usd.items()
    ]
    say("")
    print_table("$ a month for 10^9 tokens", ("codec", *(f"k = {k}" for k in columns)), prices)
    if all(one.workers is None for one in found.sizes):
        say("workers are told once a round is scored: the rate is the run's own")


def _memory(run: Run) -> "Memory | None":
    """Return what the stages need; None where nothing can be told, for want of torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from pipeline.sizing.machine import this_machine
    from pipeline.sizing.memory import memory_of

    return memory_of(run, this_machine())


def _as_json(memory: "Memory") -> dict[str, Any]:
    tightest = memory.tightest
    return {
        "machine": memory.machine,
        "needs": [
            {**asdict(need), "bytes": need.bytes, "share": need.share} for need in memory.needs
        ],
        "tightest": None if tightest is None else tightest.stage,
        "unknown": memory.unknown,
        "warnings": list(memory.warnings),
    }


def _print_memory(memory: "Memory") -> None:
    rows, titles = list[list[str]](), ("stage", "of", "needs", "there is", "share", "made of")
    for need in memory.needs:
        parts = sorted(need.parts.items(), key=lambda part: -part[1])
        words = ", ".join(f"{what} {in_bytes(size)}" for what, size in parts if size)
        held = "none" if need.held is None else in_bytes(need.held)
        share = "" if need.share is None else f"{need.share:.0%}"
        note = f"{words}; {need.note}" if need.note else words
        rows.append([need.stage, need.memory, in_bytes(need.bytes), held, share, note])
    say("")
    title = f"memory at the peak, estimated; here: {memory.machine}"
    print_table(title, titles if rows else (), rows, left=(0, 1, 5))
    for name, reason in memory.unknown.items():
        say(f"{name} is not known here: {reason}")
    if memory.tightest is not None and memory.tightest.share is not None:
        say(f"met first: the memory of {memory.tightest.stage}, {memory.tightest.share:.0%} of it")
    warn(*memory.warnings)
