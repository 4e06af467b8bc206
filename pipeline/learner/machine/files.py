"""Batches as files that several processes map: arrays end to end, behind JSON that names them.

Only for files of the same start of the learner: nothing is checked, and nothing is kept.
"""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.learner.sequences import Batch, SampleColumns, TeacherColumns

Arrays = dict[str, NDArray[Any]]

ALIGNED = 64
"""Bytes at whose multiples arrays begin."""

TEACHER, SAMPLE = "teacher", "teacher.sample"
"""Parts of a batch that have arrays of their own."""


def arrays_of(batch: Batch) -> Arrays:
    """Return all arrays of a batch by the names of their fields, those of parts after a dot."""
    parts = {"": vars(batch), TEACHER: vars(batch.teacher)}
    if batch.teacher.sample is not None:
        parts[SAMPLE] = vars(batch.teacher.sample)
    return {
        f"{part}.{name}": value
        for part, values in parts.items()
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }


def size_of(batch: Batch) -> int:
    """Return the bytes of the arrays of a batch."""
    return sum(array.nbytes for array in arrays_of(batch).values())


def write_batch(path: Path, batch: Batch) -> None:
    """Write a batch to a file, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = arrays_of(batch)
    sample = batch.teacher.sample
    header = {
        "of": None if sample is None else sample.of,
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
    }
    draft = path.with_suffix(".part")
    try:
        with draft.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            for array in arrays.values():
                file.write(bytes(-file.tell() % ALIGNED))
                file.write(np.ascontiguousarray(array).data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def map_batch(path: Path) -> Batch:
    """Return the batch of a file; its arrays are the file's own memory, also once it is removed.

    Raises:
        OSError: there is no such file.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    end = mapped.find(b"\n") + 1
    header = json.loads(mapped[:end])
    arrays = dict(_arrays(mapped, header["arrays"], end))
    of = header["of"]
    sample = None if of is None else SampleColumns(of=of, **_part(arrays, SAMPLE))
    teacher = TeacherColumns(sample=sample, **_part(arrays, TEACHER))
    return Batch(teacher=teacher, **_part(arrays, ""))


def _arrays(mapped: mmap.mmap, named: list[Any], at: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield arrays that stand end to end behind a place, by their names."""
    for name, dtype, shape in named:
        at += -at % ALIGNED
        count = int(np.prod(shape))
        yield name, np.frombuffer(mapped, dtype, count, at).reshape(shape)
        at += count * np.dtype(dtype).itemsize


def _part(arrays: Arrays, part: str) -> Arrays:
    """Return the arrays of a part by the names of its fields."""
    found = (name.rpartition(".") for name in arrays)
    return {field: arrays[f"{of}.{field}"] for of, _, field in found if of == part}
