"""The file that decides between two attempts at one checkpoint: created once, its manifest inside.

It is the index of the weight files, or the weights of an adapter. Pure functions of bytes.
"""

import json
import struct
from pathlib import Path

from pipeline.models.adapters import ADAPTER_WEIGHTS, is_adapter
from schemas.errors import DataError
from schemas.strictjson import parse_json

INDEX = "model.safetensors.index.json"

KEY = "opd"
"""Name of the manifest in the file's metadata."""

ALIGNMENT = 8
"""Bytes that a safetensors header is padded to."""


def deciding_file(folder: Path) -> str:
    """Return the name of the file that decides in a checkpoint's folder."""
    return ADAPTER_WEIGHTS if is_adapter(folder) else INDEX


def with_manifest(path: Path, manifest: str) -> bytes:
    """Return a deciding file's bytes with a manifest in its metadata."""
    data = path.read_bytes()
    if path.name == INDEX:
        index = json.loads(data)
        index["metadata"][KEY] = manifest
        return json.dumps(index, indent=1, sort_keys=True).encode()
    header, tensors = _split(data)
    header.setdefault("__metadata__", {})[KEY] = manifest
    return _joined(header, tensors)


def without_manifest(path: Path) -> bytes:
    """Return a checkpoint's deciding file as it was before its manifest was put into it."""
    data = path.read_bytes()
    if path.name == INDEX:
        index = json.loads(data)
        index["metadata"].pop(KEY, None)
        return json.dumps(index, indent=1, sort_keys=True).encode()
    header, tensors = _split(data)
    header.get("__metadata__", {}).pop(KEY, None)
    return _joined(header, tensors)


def manifest_within(data: bytes, *, where: str) -> str:
    """Return the manifest in the metadata of a deciding file.

    Raises:
        DataError: there is none.
    """
    try:
        is_index = data[:1] == b"{"
        metadata = parse_json(data)["metadata"] if is_index else _split(data)[0]["__metadata__"]
        return str(metadata[KEY])
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DataError(
            f"{where} decides what the checkpoint is, and holds no manifest: it is damaged. "
            "Restore it, or delete the checkpoint's folder, and run the same command again"
        ) from error


def _joined(header: dict[str, dict[str, str]], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + tensors


def _split(data: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    """Return the header of a safetensors file and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, dict[str, str]] = parse_json(data[8 : 8 + length])
    return header, data[8 + length :]
