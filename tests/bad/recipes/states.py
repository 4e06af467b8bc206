"""States of the learner whose files no data can write: digests must be right, or sizes large."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.forged import forged

PICKLE = b"cposix\nsystem\n(Vtouch ran\ntR."
"""Makes a file where it is read."""


def record_of(folder: Path) -> Path:
    """Return the record of the state that the second round begins with."""
    return max((folder / "store/runs/tiny/rounds/0000/train/commits").iterdir())


def record_of_zeros(folder: Path) -> None:
    """Put zeros in the place of a record, as some disks do after a loss of power."""
    record_of(folder).write_bytes(bytes(4096))


def record_without_end(folder: Path) -> None:
    """Put lists in lists in the place of a record."""
    record_of(folder).write_text("[" * 100_000)


def pickle_as_json(folder: Path) -> None:
    """Put a pickle in the place of a state's JSON."""
    _replace(folder, ".json", PICKLE)


def pickle_as_tensors(folder: Path) -> None:
    """Put a pickle in the place of a state's tensors."""
    _replace(folder, ".safetensors", PICKLE)


def other_tensors(folder: Path) -> None:
    """Put tensors of other shapes in the place of a state's."""
    shard = _shards(folder)[".safetensors"]
    path = folder / "store" / shard["key"]
    tensors = {name: tensor.flatten()[:1].clone() for name, tensor in load_file(path).items()}
    save_file(tensors, folder / "other.safetensors")
    _replace(folder, ".safetensors", (folder / "other.safetensors").read_bytes())


def cut_file(folder: Path) -> None:
    """Take the last bytes of a state's tensors away."""
    path = folder / "store" / _shards(folder)[".safetensors"]["key"]
    path.write_bytes(path.read_bytes()[:-100])


def _shards(folder: Path) -> dict[str, dict[str, str]]:
    files = json.loads(record_of(folder).read_text())["files"]
    return {Path(name).suffix: shard for name, shard in files.items()}


def _replace(folder: Path, ending: str, data: bytes) -> None:
    """Put bytes in the place of a file of a state, and make its record right again."""
    record = record_of(folder)
    words, digest = json.loads(record.read_text()), hashlib.sha256(data).hexdigest()
    for name, shard in words["files"].items():
        if name.endswith(ending):
            key = f"runs/tiny/state/{digest}{ending}"
            shard.update(key=key, sha256=digest, bytes=len(data))
            (folder / "store" / key).write_bytes(data)
    record.write_bytes(forged(words))
