"""Bad models: weights, tokenizers, links and adapters that no data says."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import make_adapter

WEIGHTS = "model.safetensors"


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of a safetensors header, and leave the tensors' bytes as they are."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    first = min(n for n in header if n != "__metadata__" and len(header[n]["shape"]) == 2)
    header[first] = {**header[first], **changes}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def cut(folder: Path) -> None:
    path = folder / "student" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def grow(folder: Path) -> None:
    path = folder / "student" / WEIGHTS
    path.write_bytes(path.read_bytes() + bytes(100))


def huge_header(folder: Path) -> None:
    (folder / "student" / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def deep_header(folder: Path) -> None:
    text = b'{"a":' + b"[" * 100_000
    (folder / "student" / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)


def double_header(folder: Path) -> None:
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = b'{"a":' + entry + b',"a":' + entry + b"}"
    (folder / "student" / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


def overlap(folder: Path) -> None:
    path = folder / "student" / WEIGHTS
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    text += b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))


def unknown_format(folder: Path) -> None:
    rewrite(folder / "student" / WEIGHTS, dtype="F31")


def other_shape(folder: Path) -> None:
    rewrite(folder / "student" / WEIGHTS, shape=[3, 3])


def negative_shape(folder: Path) -> None:
    rewrite(folder / "student" / WEIGHTS, shape=[-1, -4])


def endless_shape(folder: Path) -> None:
    rewrite(folder / "student" / WEIGHTS, shape=[1 << 61, 1 << 61])


def no_tensor(folder: Path) -> None:
    rewrite(folder / "student" / WEIGHTS, data_offsets=7)


def changed(folder: Path, name: str, value: torch.Tensor | None, model: str = "student") -> None:
    """Replace a tensor by another one, or leave it out."""
    path = folder / model / WEIGHTS
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path, metadata={"format": "pt"})


def without_a_tensor(folder: Path) -> None:
    changed(folder, "model.layers.0.mlp.up_proj.weight", None)


def other_embedding(folder: Path) -> None:
    changed(folder, "model.embed_tokens.weight", torch.zeros(3, 32))


def whole_numbers(folder: Path) -> None:
    changed(folder, "model.layers.0.mlp.up_proj.weight", torch.zeros(64, 32, dtype=torch.int8))


def not_a_number(folder: Path) -> None:
    changed(folder, "model.norm.weight", torch.full((32,), float("nan")))


def infinite_teacher(folder: Path) -> None:
    changed(folder, "model.norm.weight", torch.full((64,), float("inf")), "main")


def indexed(folder: Path, where: object, name: str = "part.safetensors") -> None:
    """Put the student's weights behind an index that says where the final norm is."""
    student = folder / "student"
    (student / WEIGHTS).rename(student / name)
    places: dict[str, object] = dict.fromkeys(load_file(student / name), name)
    places["model.norm.weight"] = where
    (student / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def index_climbs(folder: Path) -> None:
    indexed(folder, "../main/model.safetensors")


def index_absolute(folder: Path) -> None:
    indexed(folder, str(folder / "main" / WEIGHTS))


def index_missing(folder: Path) -> None:
    indexed(folder, "model-00002-of-00002.safetensors")


def index_pickle(folder: Path) -> None:
    indexed(folder, "pytorch_model.bin")


def index_of_numbers(folder: Path) -> None:
    indexed(folder, 7)


def index_wrong_file(folder: Path) -> None:
    indexed(folder, "other.safetensors")
    save_file({"elsewhere": torch.zeros(1)}, folder / "student" / "other.safetensors")


def index_whole(folder: Path) -> None:
    indexed(folder, "part.safetensors")


def pickle(folder: Path) -> None:
    (folder / "student" / WEIGHTS).rename(folder / "student" / "pytorch_model.bin")


def flax(folder: Path) -> None:
    (folder / "student" / WEIGHTS).rename(folder / "student" / "flax_model.msgpack")


def pipe_config(folder: Path) -> None:
    (folder / "student" / "config.json").unlink()
    os.mkfifo(folder / "student" / "config.json")


def pipe_weights(folder: Path) -> None:
    (folder / "student" / WEIGHTS).unlink()
    os.mkfifo(folder / "student" / WEIGHTS)


def endless_config(folder: Path) -> None:
    (folder / "student" / "config.json").unlink()
    (folder / "student" / "config.json").symlink_to("/dev/zero")


def linked_config(folder: Path) -> None:
    (folder / "student" / "config.json").unlink()
    (folder / "student" / "config.json").symlink_to("config.json")


def linked_folder(folder: Path) -> None:
    (folder / "round").symlink_to("round")


def large_config(folder: Path) -> None:
    with (folder / "student" / "config.json").open("wb") as file:
        file.truncate(1 << 33)


def deep_config(folder: Path) -> None:
    (folder / "student" / "config.json").write_text('{"a":' * 200_000)


def nested_config(folder: Path) -> None:
    (folder / "student" / "config.json").write_text('{"a":' * 90 + "1" + "}" * 90)


def deep_tokenizer(folder: Path) -> None:
    (folder / "student" / "tokenizer.json").write_text('{"a":' * 200_000)


def adapter(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Put an adapter of the student into `adapter`, with changed settings."""
    path = make_adapter(folder / "adapter", folder / "student") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (changes or {})))
    return path.parent


def adapter_rank_0(folder: Path) -> None:
    adapter(folder, {"r": 0})


def adapter_rank_text(folder: Path) -> None:
    adapter(folder, {"r": "six"})


def adapter_rank_other(folder: Path) -> None:
    adapter(folder, {"r": 7})


def adapter_rank_huge(folder: Path) -> None:
    adapter(folder, {"r": 10**9})


def adapter_no_kind(folder: Path) -> None:
    adapter(folder, {"peft_type": None})


def adapter_alpha(folder: Path) -> None:
    adapter(folder, {"lora_alpha": "strong"})


def adapter_targets(folder: Path) -> None:
    adapter(folder, {"target_modules": [1, 2]})


def adapter_base_gone(folder: Path) -> None:
    adapter(folder, {"base_model_name_or_path": "nowhere"})


def adapter_of_itself(folder: Path) -> None:
    adapter(folder, {"base_model_name_or_path": "."})


def adapter_damaged(folder: Path) -> None:
    (adapter(folder) / "adapter_config.json").write_text("{")


def adapter_cut(folder: Path) -> None:
    path = adapter(folder) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def adapter_pickle(folder: Path) -> None:
    (adapter(folder) / "adapter_model.safetensors").rename(folder / "adapter" / "adapter_model.bin")


def own_code(folder: Path) -> None:
    """Make an architecture that only code beside the model knows; the code leaves a trace."""
    path = folder / "student" / "config.json"
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    settings = json.loads(path.read_text()) | {"model_type": "own-kind", "auto_map": own}
    path.write_text(json.dumps(settings))
    trace = folder / "store" / "code-was-run"
    code = f"import pathlib\npathlib.Path({str(trace)!r}).parent.mkdir(exist_ok=True)\n"
    (folder / "student" / "own.py").write_text(f"{code}pathlib.Path({str(trace)!r}).touch()\n")


def add_tensors(path: Path, **tensors: torch.Tensor) -> None:
    """Put further tensors into a safetensors file; `__` in a name stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({**load_file(path), **named}, path, metadata={"format": "pt"})


def biases_denied(folder: Path) -> None:
    add_tensors(folder / "student" / WEIGHTS, model__layers__0__mlp__up_proj__bias=torch.ones(64))


def scales_unread(folder: Path) -> None:
    name = "model__layers__0__mlp__up_proj__weight_scale"
    add_tensors(folder / "main" / WEIGHTS, **{name: torch.ones(1)})


def value_head(folder: Path) -> None:
    add_tensors(folder / "main" / WEIGHTS, v_head__summary__weight=torch.ones(1, 64))


def norm_of_codes(folder: Path) -> None:
    codes = torch.ones(64, dtype=torch.int8)
    add_tensors(folder / "main" / WEIGHTS, model__norm__weight=codes)


def two_models(folder: Path) -> None:
    """Leave a part of another model beside the whole one."""
    part = {"model.norm.weight": torch.ones(32)}
    save_file(part, folder / "student" / "model-00001-of-00002.safetensors")


def tensor_in_two_parts(folder: Path) -> None:
    index_whole(folder)
    student = folder / "student"
    save_file({"model.norm.weight": torch.ones(32)}, student / "more.safetensors")
    path = student / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "more.safetensors"
    path.write_text(json.dumps(index))


def adapter_of_prompts(folder: Path) -> None:
    adapter(folder, {"peft_type": "PROMPT_TUNING"})


def adapter_of_more_layers(folder: Path) -> None:
    adapter(folder, {"layer_replication": [[0, 2], [1, 2]]})


def adapter_unread(folder: Path) -> None:
    adapter(folder, {"target_modules": ["q_proj"]})
