"""Ranked ids in `packed-v1`, top-k or sample: numbers of ids in two parts, levels as steps. Pure.

The lowest four bits of an id's number stand apart, and of levels only the steps from rank to rank
are kept, both two to a byte. Rows are done in pieces that stay in a processor's cache.
Shapes: T tokens, N entries: ranked ids of all tokens, rows joined; R rows.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.packed import varints
from pipeline.shards.packed.nibbles import joined, split
from pipeline.shards.packed.quantization import FINE, levels, num_levels, values
from pipeline.shards.packed.varints import Bytes, Coded, Counts
from schemas.columns import binary_array, binary_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import stretches

ESCAPE = 15
"""Step that says: the rest of it is among the long ones."""

PIECE_ENTRIES = 1 << 20

Numbers = NDArray[np.int32]


def pieces(table: pa.Table, entries: Counts) -> Iterator[pa.Table]:
    """Yield a table in parts of whole rows, with up to 2^20 entries each; at least one part.

    Args:
        table: rows.
        entries: int64 [R] entries of each row.
    """
    ends = stretches(entries, PIECE_ENTRIES) or [0]
    for start, end in pairwise([0, *ends]):
        yield table.slice(start, end - start)


def encode(
    name: str,
    numbers: Numbers,
    logprobs: NDArray[Any],
    *,
    entries: Counts,
    per_token: int | Counts,
) -> dict[str, pa.Array]:
    """Return the stored columns of ranked ids.

    Args:
        name: what the columns begin with.
        numbers: int32 [N] numbers of the ids.
        logprobs: float32 [N].
        entries: int64 [R] entries of each row.
        per_token: entries of each token, one number for all or int64 [T].

    Raises:
        DataError: log-probabilities are not in rank order.
    """
    steps = _steps(levels(logprobs, drop=FINE), per_token, name)
    long = np.flatnonzero(steps >= ESCAPE)
    long_counts = varints.rows_of(long, np.cumsum(entries))
    return {
        **put(f"{name}_ids", numbers >> 4, entries),
        f"{name}_ids_low": binary_array(*joined(numbers & 15, entries)),
        f"{name}_steps": binary_array(*joined(np.minimum(steps, ESCAPE), entries)),
        **put(f"{name}_long_steps", steps[long] - ESCAPE, long_counts),
    }


def decode(
    name: str,
    table: pa.Table,
    to_ids: Callable[[Numbers], Any],
    *,
    per_token: int | Counts,
    where: str,
) -> tuple[Numbers, NDArray[np.float32]]:
    """Return ranked ids and their log-probabilities [N].

    Args:
        name: what the columns begin with.
        table: stored columns, rows with as many entries as their tokens call for.
        to_ids: gives the ids of numbers.
        per_token: entries of each token, one number for all or int64 [T].
        where: what messages call the table.

    Raises:
        DataError: the bytes of a column do not fit those of another one.
    """
    entries = num_entries(name, table)
    ids, logprobs = np.empty(entries.sum(), np.int32), np.empty(entries.sum(), np.float32)
    end = token = 0
    for part in pieces(table, entries):
        numbers = _numbers(name, part, where)
        begin, end = end, end + len(numbers)
        ids[begin:end] = to_ids(numbers)
        counts = per_token
        if not isinstance(counts, int):
            first, token = token, token + int(list_lengths(part, "token_logprob").sum())
            counts = counts[first:token]
        steps = _step_numbers(name, part, where)
        found = _levels(steps, counts)
        if max(steps.max(initial=0), found.max(initial=0)) >= num_levels(FINE):
            raise DataError(f"{where}: '{name}_steps' fall below every log-probability")
        logprobs[begin:end] = values(found, drop=FINE)
    return ids, logprobs


def num_entries(name: str, table: pa.Table) -> Counts:
    """Return the entries of each row of stored columns, int64 [R]."""
    return np.asarray(binary_values(table, f"{name}_ids")[1])


def put(name: str, numbers: Numbers, counts: Counts) -> dict[str, pa.Array]:
    """Return the two stored columns of some numbers, `counts` of them in each row."""
    coded = varints.encode(numbers, counts)
    more = binary_array(coded.more, coded.more_counts)
    return {name: binary_array(coded.heads, counts), f"{name}_more": more}


def get(table: pa.Table, name: str, where: str) -> tuple[Numbers, Counts]:
    """Return the numbers of two stored columns, and how many each row has."""
    heads, counts = binary_values(table, name)
    coded = Coded(heads, *binary_values(table, f"{name}_more"))
    return varints.decode(coded, counts, where=f"{where}, column {name!r}"), counts


def _numbers(name: str, table: pa.Table, where: str) -> Numbers:
    """Return the numbers of ids [N]."""
    numbers, entries = get(table, f"{name}_ids", where)
    numbers <<= 4
    numbers |= _halves(table, f"{name}_ids_low", entries, where)
    return numbers


def _step_numbers(name: str, table: pa.Table, where: str) -> Numbers:
    """Return the steps [N], short and long."""
    short = _halves(table, f"{name}_steps", num_entries(name, table), where)
    steps = short.astype(np.int32)
    long, rest = np.flatnonzero(short == ESCAPE), get(table, f"{name}_long_steps", where)[0]
    if len(long) != len(rest):
        raise DataError(f"{where}: {len(rest)} long steps for {len(long)} escapes")
    steps[long] += rest
    return steps


def _halves(table: pa.Table, name: str, counts: Counts, where: str) -> Bytes:
    """Return a column of half bytes, uint8, rows joined."""
    pairs, lengths = binary_values(table, name)
    if not np.array_equal(lengths, (counts + 1) // 2):
        raise DataError(f"{where}: {name!r} has not half a byte for each id")
    return split(pairs, counts)


def _steps(found: Numbers, per_token: int | Counts, name: str) -> Numbers:
    """Return by how much each level exceeds the one before; the first of a token, itself."""
    starts = (
        np.arange(0, len(found), per_token)
        if isinstance(per_token, int)
        else _starts(per_token[per_token > 0])
    )
    steps = np.empty_like(found)
    np.subtract(found[1:], found[:-1], out=steps[1:])
    steps[starts] = found[starts]
    if len(steps) and steps.min() < 0:
        raise DataError(f"{name} log-probabilities to be packed are not in rank order")
    return steps


def _levels(steps: Numbers, per_token: int | Counts) -> Numbers:
    """Return the running sum of a token's steps; one over tokens that wraps is harmless."""
    sums: Numbers = np.cumsum(steps, dtype=np.int32)
    if isinstance(per_token, int):
        rows = sums.reshape(-1, per_token)
        rows[1:] -= rows[:-1, -1:].copy()
        return sums
    some = per_token[per_token > 0]
    starts = _starts(some)
    return np.asarray(sums - np.repeat(sums[starts] - steps[starts], some))


def _starts(per_token: Counts) -> Counts:
    """Return where the entries of each token begin."""
    return np.asarray(np.cumsum(per_token) - per_token)
