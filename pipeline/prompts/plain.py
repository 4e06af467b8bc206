"""Arrow columns as plain Python values, with about how many bytes each of them takes.

Promises: equal texts of a dictionary are one Python object; dates and times, which Python's own
types cannot all hold, become their exact text; bytes that are no UTF-8 stay visible as surrogates.
Pure.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.prompts.values import Foreign

Sizes = NDArray[np.int64]

Plain = tuple[list[Any], Sizes]

VALUE_BYTES = 8
"""Bytes that a value is counted with, beside those of its text."""

DAY_S = 86_400

LEAST = -(1 << 63)
"""What numpy takes for no moment at all."""


def plain(array: pa.Array) -> Plain:
    """Return the values of a column, and about how many bytes each of them takes."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(array)
    if pa.types.is_dictionary(kind):
        return _dictionary(array)
    if pa.types.is_struct(kind):
        return _struct(array)
    if pa.types.is_map(kind):
        return _map(array)
    if _is_list(kind):
        return _lists(array)
    if pa.types.is_temporal(kind):
        return [_moment(value) for value in array], _flat_sizes(array)
    return _leaves(array)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(listed or types.is_list_view(kind) or types.is_large_list_view(kind))


def _flat_sizes(array: pa.Array) -> Sizes:
    return np.full(len(array), VALUE_BYTES, np.int64)


def _leaves(array: pa.Array) -> Plain:
    kind, sizes = array.type, _flat_sizes(array)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        array = array.cast(
            pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
        )
        kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        sizes = sizes + pc.binary_length(array).fill_null(0).to_numpy()
        try:
            return array.to_pylist(), sizes
        except UnicodeDecodeError:
            raw = array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
            return [_escaped(value) for value in raw.to_pylist()], sizes
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sizes = sizes + pc.binary_length(array).fill_null(0).to_numpy()
    return array.to_pylist(), sizes


def _escaped(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="surrogateescape")


def _dictionary(array: pa.DictionaryArray) -> Plain:
    """Return values that are made once for each different one."""
    indices = array.indices.fill_null(-1).to_numpy()
    used, places = np.unique(indices, return_inverse=True)
    taken = pa.array(used, mask=used < 0) if len(used) else pa.array([], pa.int64())
    held, sizes = plain(array.dictionary.take(taken))
    return [held[place] for place in places.tolist()], sizes[places]


def _struct(array: pa.StructArray) -> Plain:
    kind, there = array.type, array.is_valid().to_pylist()
    names = [kind.field(index).name for index in range(kind.num_fields)]
    parts = [plain(part) for part in array.flatten()]
    sizes = _flat_sizes(array) + sum(sizes for _, sizes in parts)
    rows = zip(*(values for values, _ in parts), strict=True)
    found = [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, there, strict=True)
    ]
    return found, sizes


def _lists(array: pa.Array) -> Plain:
    lengths = pc.list_value_length(array)
    values, inner = plain(pc.list_flatten(array))
    counts = lengths.fill_null(0).to_numpy().astype(np.int64)
    ends = np.cumsum(counts)
    sums = np.concatenate([[0], np.cumsum(inner)])
    sizes = _flat_sizes(array) + sums[ends] - sums[ends - counts]
    cut = zip((ends - counts).tolist(), ends.tolist(), array.is_valid().to_pylist(), strict=True)
    return [values[start:end] if valid else None for start, end, valid in cut], sizes


def _map(array: pa.MapArray) -> Plain:
    """Return lists of pairs: a map may hold a key twice, and keys that are no text."""
    kind = array.type
    pair = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
    lists, sizes = _lists(array.cast(pa.list_(pair)))
    return [None if one is None else [list(p.values()) for p in one] for one in lists], sizes


def _extension(array: pa.ExtensionArray) -> Plain:
    if isinstance(array.type, pa.UuidType):
        values = [None if one is None else str(one) for one in array.to_pylist()]
        return values, 5 * _flat_sizes(array)
    if isinstance(array.type, pa.Bool8Type):
        return array.to_pylist(), _flat_sizes(array)
    return plain(array.storage)


def _moment(scalar: pa.Scalar) -> Foreign | None:
    """Return a date, time or duration as text; Python's own where it has one that is exact."""
    if not scalar.is_valid:
        return None
    kind, value = scalar.type, scalar.value
    name = str(kind)
    if pa.types.is_date(kind):
        days = value if pa.types.is_date32(kind) else value // (1000 * DAY_S)
        return Foreign(name, _moment_text(days, "D"))
    if pa.types.is_duration(kind):
        return Foreign(name, f"{value} {kind.unit}")
    if pa.types.is_time(kind):
        return Foreign(name, _time(value, kind.unit))
    return Foreign(name, _timestamp(value, kind))


def _timestamp(value: int, kind: pa.TimestampType) -> str:
    if value == LEAST:
        return f"{value} {kind.unit}"
    date, _, time = _moment_text(value, kind.unit).partition("T")
    return f"{date} {_fraction(time)}{'' if kind.tz is None else '+00:00'}"


def _time(value: int, unit: str) -> str:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    if not 0 <= value < DAY_S * per_second:
        return f"{value} {unit}"
    return _fraction(_moment_text(value, unit).partition("T")[2])


def _moment_text(value: int, unit: str) -> str:
    """Return what numpy writes for a number of units since 1970, of any year."""
    moments = np.array([value], np.int64).view(f"datetime64[{unit}]")
    return str(np.datetime_as_string(moments)[0])


def _fraction(time: str) -> str:
    """Return a time of day with no fraction, or with six digits of it, or nine where it needs."""
    whole, _, digits = time.partition(".")
    digits = digits.ljust(9, "0")
    short = digits[:6] if digits.endswith("000") else digits
    return f"{whole}.{short}" if digits.strip("0") else whole
