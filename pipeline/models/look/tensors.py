"""Headers of safetensors files and the index that names them, read without any library.

Promises: a header is believed only where its offsets cover the file exactly; a name in an index
never leads out of the folder. No tensor is read.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.models.look.jsonfiles import Unusable, parse_object, read_object
from schemas.foreign import shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

MAX_HEADER = 100_000_000
"""Bytes of a header; safetensors has the same limit."""

INDEX_BYTES = 1 << 27

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Number formats of safetensors → bits of a value."""

FLOATS = {name for name in BITS if name.startswith(("F", "BF"))}
"""Formats that a matrix of weights may have where nothing is quantised."""

PLAIN_NAME = re.compile(r"[^/\\\0]+")

MODEL_FILE = re.compile(r"model[-.].*safetensors$|.*-\d+-of-\d+\.safetensors$")
"""Names of files that hold a model's weights, or a part of them."""

SHOWN_NAMES = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor."""

    dtype: str
    shape: Shape


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        Unusable: it is damaged.
    """
    try:
        if not path.exists():
            raise Unusable("is missing: copy the model's files again, or correct what names it")
        if not path.is_file():
            raise Unusable("is no regular file: put the weights there")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise Unusable(
                    f"is no safetensors file: its {size:,} bytes begin with a header of "
                    f"{length:,}. Copy it again; a Git LFS pointer stands for a file that was "
                    "not downloaded"
                )
            header = parse_object(file.read(length))
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    return _checked(header, size - 8 - length)


def _checked(header: dict[str, Any], room: int) -> dict[str, Tensor]:
    """Return the tensors of a header, if they fill the room behind it without gap or overlap."""
    parts: list[tuple[int, int, str]] = []
    found: dict[str, Tensor] = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise Unusable(f"has a damaged header: tensor {shown(name)} is no tensor") from error
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise Unusable(f"has a damaged header: tensor {shown(name)} has impossible sizes")
        if not isinstance(dtype, str) or dtype not in BITS:
            raise Unusable(
                f"has tensor {shown(name)} in the number format {shown(dtype)}, expected one of "
                f"{', '.join(BITS)}"
            )
        if prod(shape) * BITS[dtype] != 8 * (end - begin):
            raise Unusable(
                f"has tensor {shown(name)} of shape {shown(shape)} and format {dtype} in "
                f"{end - begin:,} bytes: one of these is wrong. Copy it again"
            )
        parts.append((begin, end, name))
        found[name] = Tensor(dtype, tuple(shape))
    _check_cover(sorted(parts), room)
    return found


def _check_cover(parts: list[tuple[int, int, str]], room: int) -> None:
    place = 0
    for begin, end, name in parts:
        if begin != place:
            raise Unusable(
                f"has tensor {shown(name)} at byte {begin:,}, expected {place:,}: tensors overlap "
                "or leave a gap. Copy it again"
            )
        place = end
    if place != room:
        raise Unusable(
            f"has {room:,} bytes of tensors, but its header speaks of {place:,}: it was cut off or "
            "is damaged. Copy it again"
        )


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that a model's weights are read from.

    Raises:
        Unusable: there are none in safetensors, or the index is damaged.
    """
    if os.path.lexists(folder / SINGLE):
        return [SINGLE]
    if os.path.lexists(folder / INDEX):
        return sorted(set(read_index(folder).values()))
    raise Unusable(_without_weights(folder))


def read_index(folder: Path) -> dict[str, str]:
    """Return which file each tensor is in, as the index says.

    Raises:
        Unusable: the index is damaged.
    """
    entries = read_object(folder / INDEX, most=INDEX_BYTES).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise Unusable(f"has weight_map = {shown(entries)}, expected tensors and their files")
    for name, file in entries.items():
        plain = isinstance(file, str) and PLAIN_NAME.fullmatch(file)
        if not plain or not file.endswith(".safetensors"):
            raise Unusable(
                f"says that {shown(name)} is in {shown(file)}, expected the name of a "
                "safetensors file of the same folder"
            )
    return entries


def double_faults(read: list[str], tensors: dict[str, dict[str, Tensor]]) -> Iterator[str]:
    """Yield where a tensor may be read from two files, for engines differ in which they read.

    Args:
        read: files that transformers reads.
        tensors: file → tensors in it, of all files of the folder.
    """
    others = sorted(name for name in tensors if name not in read and MODEL_FILE.match(name))
    places: dict[str, str] = {}
    for file in (*read, *others):
        twice = [name for name in tensors[file] if name in places]
        if twice:
            yield (
                f"tensor {shown(twice[0])} is in {places[twice[0]]} and in {file} ({len(twice)} "
                "such tensors), and engines differ in which they read: keep the files of one model "
                "and delete the others"
            )
            return
        places |= dict.fromkeys(tensors[file], file)


def index_faults(index: dict[str, str], tensors: dict[str, dict[str, Tensor]]) -> Iterator[str]:
    """Yield what of an index is not in the files.

    Args:
        index: tensor → file.
        tensors: file → tensors in it, for files that could be read.
    """
    lacking = [n for n, file in index.items() if file in tensors and n not in tensors[file]]
    if lacking:
        first = lacking[0]
        yield (
            f"{INDEX} says that {shown(first)} is in {index[first]}, which lacks it "
            f"({len(lacking)} such tensors): the files are of different models, copy all again"
        )


def _without_weights(folder: Path) -> str:
    """Return words for a folder that has no weights in safetensors."""
    kinds = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.npz")
    others = sorted(path.name for kind in kinds for path in folder.glob(kind))
    if not others:
        return (
            f"no file named {SINGLE} or {INDEX} is there, so there are no weights: it is not a "
            "whole model. Copy the weights there"
        )
    named = ", ".join(map(shown, others[:SHOWN_NAMES]))
    return (
        f"no file named {SINGLE} or {INDEX} is there; the weights are in {named}, which is never "
        "loaded, for such files can run code or have another form. Convert the model to "
        "safetensors: load it where you trust it and call save_pretrained"
    )
