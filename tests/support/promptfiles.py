"""Prompt files, a tokenizer of characters, and pinning in one call."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.runs.run import Run
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.errors import ConfigError
from schemas.keys import manifest_key, prompts_folder
from schemas.records.runs import PromptsManifest
from schemas.tables import PROMPTS

Fast: Any = PreTrainedTokenizerFast  # its constructor is untyped

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789"
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ ending }}"
)
SECTIONS = """
run = {{ name = {name!r}, root = "store", seed = 0, rounds = 1 }}
student = {{ model = "student" }}
teachers = {{ large = {{ model = "large" }}, math = {{ model = "math" }} }}
score = {{ k = 4 }}
loss = {{ kind = "forward_kl" }}
train = {{ learning_rate = 1e-3, sequences_per_step = 1 }}
[rollout]
prompts_per_round = 1
samples_per_prompt = 1
max_new_tokens = 4
temperature = 1.0
top_p = 1.0
top_k = 0
[prompts]
train = {train!r}
max_tokens = 12
"""


def char_tokenizer(*, template: str | None = None, lower: bool = False, bos: bool = False) -> Any:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if lower:
        backend.normalizer = normalizers.Lowercase()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", VOCABULARY["<bos>"])]
        )
    backend.add_special_tokens(list(SPECIAL))
    backend.decoder = decoders.Fuse()
    tokenizer = Fast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = template
    return tokenizer


def ids_of(text: str, *specials: str) -> list[int]:
    return [VOCABULARY[token] for token in [*specials, *text]]


def run_of(storage: Storage, base: Path, train: str, *overrides: str, name: str = "first") -> Run:
    """Return a run of a storage whose prompts are a file named from a folder."""
    text = SECTIONS.format(name=name, train=train)
    config = parse_config(text, where="run.toml", overrides=overrides)
    return Run(config, storage, ConfigPlace(str(base)))


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


TOKENIZER = char_tokenizer()

CONFIG = parse_config(SECTIONS.format(name="first", train="p.jsonl"), where="run.toml")
"""A configuration whose prompts nobody asks for."""


def pin(storage: Storage, path: Path, *overrides: str, tokenizer: Any = None) -> PromptsManifest:
    """Pin a file as the run's training prompts."""
    run = run_of(storage, path.parent, path.name, *overrides)
    return prepare_prompts(run, "train", tokenizer or TOKENIZER)


def rows_of(storage: Storage, manifest: PromptsManifest) -> list[dict[str, Any]]:
    table = read_prompts(storage, manifest)
    assert table.schema == PROMPTS and table.num_rows == manifest.rows
    return list(table.to_pylist())


def refusal(storage: Storage, path: Path, *overrides: str, tokenizer: Any = None) -> str:
    """Return the words of the ConfigError, after which the store must still be empty."""
    with pytest.raises(ConfigError) as caught:
        pin(storage, path, *overrides, tokenizer=tokenizer)
    assert caught.value.exit_code == 2
    assert storage.names("prompts") == set()
    assert not storage.exists(manifest_key(prompts_folder("first", "train")))
    return str(caught.value)


USER = {"role": "user", "content": "x"}
