"""The file that decides between two attempts at one checkpoint: created once, its manifest inside.

It is the index of the weight files, or the weights of an adapter. Pure functions of bytes.
"""

import json
import struct
from pathlib import Path

from pipeline.models.adapters import ADAPTER_WEIGHTS, is_adapter

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
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + tensors


def manifest_within(data: bytes) -> str:
    """Return the manifest in the metadata of a deciding file."""
    metadata = json.loads(data)["metadata"] if data[:1] == b"{" else _split(data)[0]["__metadata__"]
    return str(metadata[KEY])


def _split(data: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    """Return the header of a safetensors file and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]
