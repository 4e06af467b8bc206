"""Rows of a step dealt to processes: equal work for each, little padding, few micro-batches. Pure.

Promises: a function of lengths and settings alone, the same on every machine. Processes wait for
each other at every micro-batch, so that the largest of its batches is what it costs.
Shapes: N rows, longest first; C limits on the work of a batch.
"""

from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.learner.sequences import Rows

Work = NDArray[np.float64]

EVEN_TOKENS = 16_384
"""Length of a row at which attention costs as much as all else: about 12 hidden sizes."""

FLOOR = 1 / 8
"""Share of the largest batch below which a smaller one takes hardly less time."""

START = 1 / 128
"""Cost of one more micro-batch, as a share of the largest batch."""

FINENESS = 1.0625
"""Ratio of neighbouring limits that are tried."""

HALVINGS = 24
"""Steps in which the smallest limit is found that suffices."""


def row_work(tokens: Rows) -> Work:
    """Return what rows cost, in tokens: attention costs more the longer a row is."""
    length = tokens.astype(np.float64)
    return np.asarray(length * (1 + length / EVEN_TOKENS), dtype=np.float64)


def deal(tokens: Rows, *, micro_tokens: int, processes: int) -> list[list[Rows]]:
    """Return which rows each process has in each micro-batch: `[micro][process]`, maybe none.

    Longest rows come first; rows of a batch have neighbouring lengths.

    Args:
        tokens: of each row.
        micro_tokens: padded tokens that a batch may have; a longer row stands alone.
        processes: that share the rows.
    """
    order = np.argsort(-tokens, kind="stable").astype(np.int64)
    work_N = row_work(tokens[order])
    room_N = np.maximum(micro_tokens // tokens[order], 1)
    ends = _micro_ends(work_N, room_N, processes=processes, micro_tokens=micro_tokens)
    loads, dealt = np.zeros(processes), []
    for first, end in pairwise([0, *ends]):
        cuts = _even_cuts(work_N[first:end], room_N[first:end], processes)
        batches = [order[first + a : first + b] for a, b in pairwise(cuts)]
        costs = [(b - a) * work_N[first + a] for a, b in pairwise(cuts)]
        dealt.append(_to_the_least_busy(batches, costs, loads))
    return dealt


def deal_packed(tokens: Rows, *, micro_tokens: int, processes: int) -> list[list[Rows]]:
    """Return what `deal` does for rows that are packed: any of them may share a batch.

    Rows go to processes by work, then to the batches of each, costliest first: a micro-batch has
    one of about the same cost from each process.
    """
    order = np.argsort(-tokens, kind="stable").astype(np.int64)
    work = row_work(tokens)
    shares = _by_work(order, work, processes)
    fewest = [_first_fit(share, tokens, micro_tokens) for share in shares]
    count = max(map(len, fewest), default=0)
    dealt = []
    for share, batches in zip(shares, fewest, strict=True):
        even = _by_work(share, work, count)
        fits = all(len(rows) < 2 or tokens[rows].sum() <= micro_tokens for rows in even)
        chosen = even if fits else [*batches, *[share[:0]] * (count - len(batches))]
        dealt.append(sorted(chosen, key=lambda rows: -float(work[rows].sum())))
    return [list(micro) for micro in zip(*dealt, strict=True)]


def _by_work(rows: Rows, work: Work, parts: int) -> list[Rows]:
    """Return rows in parts of about equal work; they come costliest first."""
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]
    for row in rows.tolist():
        load, part = heappop(loads)
        found[part].append(row)
        heappush(loads, (load + float(work[row]), part))
    return [np.array(part, dtype=np.int64) for part in found]


def _first_fit(rows: Rows, tokens: Rows, most: int) -> list[Rows]:
    """Return rows in few batches of at most so many tokens; a longer row stands alone."""
    found: list[list[int]] = []
    rooms: list[int] = []
    for row in rows.tolist():
        size = int(tokens[row])
        at = next((i for i, room in enumerate(rooms) if room >= size), None)
        if at is None:
            at = len(found)
            found.append([])
            rooms.append(most)
        found[at].append(row)
        rooms[at] -= size
    return [np.array(batch, dtype=np.int64) for batch in found]


def _micro_ends(work_N: Work, room_N: Rows, *, processes: int, micro_tokens: int) -> list[int]:
    """Return the row after each micro-batch, such that all of them cost least.

    Args:
        work_N: work of each row.
        room_N: rows of its length that a batch has room for.
        processes: each has one batch of a micro-batch.
        micro_tokens: of the largest batch.
    """
    limits_C = _limits(float(work_N[-1]), float(work_N[0]) * len(work_N))
    reach_CN, most_CN = _reach(work_N, room_N, limits_C, processes)
    cost_CN = np.maximum(most_CN, micro_tokens * FLOOR) + micro_tokens * START
    rows = len(work_N)
    cheapest, ends_N = np.zeros(rows + 1), np.zeros(rows, dtype=np.int64)
    for row in range(rows - 1, -1, -1):  # from the last row back: what is left is known
        total_C = cost_CN[:, row] + cheapest[reach_CN[:, row]]
        best = int(total_C.argmin())
        cheapest[row], ends_N[row] = total_C[best], reach_CN[best, row]
    ends = [int(ends_N[0])]
    while ends[-1] < rows:
        ends.append(int(ends_N[ends[-1]]))
    return ends


def _limits(least: float, most: float) -> Work:
    """Return limits in equal ratios; by multiplication alone, which rounds alike everywhere."""
    limits = [least]
    while limits[-1] < most:
        limits.append(limits[-1] * FINENESS)
    return np.array(limits)


def _reach(
    work_N: Work, room_N: Rows, limits_C: Work, processes: int
) -> tuple[NDArray[np.int32], Work]:
    """Return the row after a micro-batch that begins at a row, and its largest work, [C, N + 1]."""
    rows, shape = len(work_N), (len(limits_C), len(work_N) + 1)
    size_CN = np.clip(limits_C[:, None] // work_N, 1, np.minimum(room_N, rows - np.arange(rows)))
    next_CN, work_CN = np.full(shape, rows, dtype=np.int32), np.zeros(shape)
    next_CN[:, :-1] = np.arange(rows) + size_CN
    work_CN[:, :-1] = size_CN * work_N
    reach_CN = np.broadcast_to(np.arange(rows + 1, dtype=np.int32), shape)
    most_CN = np.zeros(shape)
    while processes:  # by squaring: one batch, two, four
        if processes & 1:
            most_CN = np.maximum(most_CN, np.take_along_axis(work_CN, reach_CN, axis=1))
            reach_CN = np.take_along_axis(next_CN, reach_CN, axis=1)
        processes >>= 1
        if processes:
            work_CN = np.maximum(work_CN, np.take_along_axis(work_CN, next_CN, axis=1))
            next_CN = np.take_along_axis(next_CN, next_CN, axis=1)
    return reach_CN, most_CN


def _even_cuts(work_N: Work, room_N: Rows, processes: int) -> list[int]:
    """Return where rows are cut into as many batches as processes, the largest as small as can be.

    The rows must have room in so many.
    """
    work, room = work_N.tolist(), room_N.tolist()
    low, high = work[0], work[0] * len(work)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if len(_cuts(work, room, middle)) - 1 <= processes:
            high = middle
        else:
            low = middle
    return _cuts(work, room, high)


def _cuts(work: list[float], room: list[int], limit: float) -> list[int]:
    """Return 0 and the row after each batch: what the limit allows, one row at least."""
    cuts = [0]
    while cuts[-1] < len(work):
        row = cuts[-1]
        size = max(1, min(int(limit // work[row]), room[row]))
        cuts.append(min(len(work), row + size))
    return cuts


def _to_the_least_busy(batches: list[Rows], costs: list[float], loads: Work) -> list[Rows]:
    """Return one batch for each process: the costlier, the less it had to do; adds to `loads`."""
    dealt = [np.empty(0, dtype=np.int64)] * len(loads)
    free = np.argsort(loads, kind="stable").tolist()
    for index in np.argsort(-np.array(costs), kind="stable").tolist():
        process = free.pop(0)
        dealt[process] = batches[index]
        loads[process] += costs[index]
    return dealt
