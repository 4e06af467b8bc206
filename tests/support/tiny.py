"""Tiny random models, tokenizers and whole runs in a folder, for tests that need something to run.

Promises: the same arguments give the same weights and files; torch's global generator is left as
it was; every stage of a tiny run takes seconds on one core.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.models.border import settle_libraries
from pipeline.quickstart.addition import distinct, make_tokenizer

ARCHITECTURES = {
    **{"qwen3": "Qwen3", "llama": "Llama", "gemma2": "Gemma2", "stablelm": "StableLm"},
    **{"olmo2": "Olmo2", "phi": "Phi", "starcoder2": "Starcoder2", "gpt_neox": "GPTNeoX"},
}
MAX_PROMPT_TOKENS = 40
MAX_NEW_TOKENS = 12
TRAIN_PROMPTS, EVAL_PROMPTS = 24, 8
"""Prompts of a tiny run; its second round of 16 goes on into the second epoch."""

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def chat_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 300 ids with a chat template."""
    special = ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["what is the sum of these numbers", "the answer is forty two", "add them all now"]
    backend.train_from_iterator(words * 4, trainer)
    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tokenizer_of(kind: str) -> Any:
    """Return the tokenizer `addition`, one token per character, or `chat`."""
    return chat_tokenizer() if kind == "chat" else make_tokenizer()


def make_model(
    folder: Path,
    *,
    arch: str = "qwen3",
    tied: bool = True,
    hidden: int = 32,
    layers: int = 2,
    vocab: int | None = None,
    seed: int = 0,
    teacher: bool = False,
    tokenizer: str = "addition",
    **settings: Any,
) -> Path:
    """Write a random model with its tokenizer and return the folder.

    Args:
        folder: where the Hugging Face folder goes.
        arch: one of `ARCHITECTURES`.
        tied: whether the head is the embedding.
        hidden: width, a multiple of 8.
        layers: layers.
        vocab: ids of the model, at least those of the tokenizer; default as many.
        seed: root of the weights.
        teacher: twice as wide, one layer more and other weights than a student of the same seed.
        tokenizer: `addition` or `chat`.
        settings: further fields of the model's configuration.
    """
    if teacher:
        hidden, layers, seed = 2 * hidden, layers + 1, seed + 1_000_003
    settle_libraries()
    text = tokenizer_of(tokenizer)
    make: Any = getattr(transformers, f"{ARCHITECTURES[arch]}Config")
    given = {
        "vocab_size": vocab or len(text),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,  # the smallest that vLLM runs on a CPU
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
        "pad_token_id": text.pad_token_id,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
    }
    config = make(**(given | settings))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{ARCHITECTURES[arch]}ForCausalLM")(config).float()
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a random PEFT adapter of a model, as PEFT itself does, and return the folder.

    Args:
        folder: where it goes.
        base: folder of the model.
        seed: root of the weights.
        settings: fields of `LoraConfig`, beside rank 6 and strength 12 on three kinds of layers.
    """
    from peft import LoraConfig, get_peft_model

    given = {"r": 6, "lora_alpha": 12, "target_modules": ["q_proj", "o_proj", "down_proj"]}
    config: Any = LoraConfig(**{**given, "init_lora_weights": False, **settings})
    settle_libraries()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def write_run(
    folder: Path,
    *,
    root: str | None = None,
    extra: str = "",
    changes: Mapping[str, object] | None = None,
    teachers: Sequence[str] = ("main",),
    tokenizer: str = "addition",
    file: str = "run.toml",
) -> Path:
    """Write a run with its models and prompts, keeping models and prompts that are there.

    Args:
        folder: where everything goes.
        root: the store; default the folder `store` beside the TOML.
        extra: TOML added at the end, such as a whole section.
        changes: dotted keys of the TOML and their values; None removes a key, or a whole section.
        teachers: names of the teachers; with several, prompts name them in turn.
        tokenizer: `addition`, or `chat` for prompts that are chats.
        file: name of the TOML, so that several runs can share a folder.

    Returns:
        The TOML's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = _sections(str(root or folder / "store"), teachers)
    for index, (name, teacher) in enumerate([("student", False), *((t, True) for t in teachers)]):
        if not (folder / name).exists():
            make_model(folder / name, seed=index, teacher=teacher, tokenizer=tokenizer)
    _write_prompts(folder / "prompts.jsonl", False, teachers, tokenizer)
    _write_prompts(folder / "held-out.jsonl", True, teachers, tokenizer)
    for key, value in (changes or {}).items():
        _change(sections, key, value)
    path = folder / file
    path.write_text("\n".join(_toml(sections)) + f"\n{extra}\n")
    return path


def _sections(root: str, teachers: Sequence[str]) -> dict[str, dict[str, object]]:
    engine: dict[str, object] = {
        "engine": os.environ.get("OPD_TEST_ENGINE", "hf"),
        "device": "cpu",
        "batch_tokens": 512,
        "logit_chunk_mb": 0.02,
    }
    return {
        "run": {"name": "tiny", "root": root, "seed": 7, "rounds": 2},
        "student": {"model": "student"},
        **{f"teachers.{name}": {"model": name} for name in teachers},
        "prompts": {
            "train": "prompts.jsonl",
            "eval": "held-out.jsonl",
            "max_tokens": MAX_PROMPT_TOKENS,
        },
        "rollout": {
            "prompts_per_round": 16,
            "samples_per_prompt": 1,
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "prompts_per_unit": 4,
            **engine,
        },
        "score": {"k": 4, **engine},
        "loss": {"kind": "forward_kl"},
        "train": {
            "learning_rate": 3e-3,
            "sequences_per_step": 8,
            "device": "cpu",
            "micro_batch_tokens": 256,
            "logit_chunk_mb": 0.02,
        },
        "eval": {"reward": "exact_match", "require_stop": False, **engine},
    }


def _change(sections: dict[str, dict[str, object]], key: str, value: object) -> None:
    if value is None and key in sections:
        del sections[key]
        return
    section, _, field = key.rpartition(".")
    if value is None:
        del sections[section][field]
    else:
        sections.setdefault(section, {})[field] = value


def _toml(sections: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = []
    for name, fields in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in fields.items())]
    return lines


def _literal(value: object) -> str:
    """Return a value as TOML writes it: as JSON does, but for NaN and infinities."""
    endless = isinstance(value, float) and not math.isfinite(value)
    return repr(value) if endless else json.dumps(value)


def _write_prompts(path: Path, held_out: bool, teachers: Sequence[str], tokenizer: str) -> None:
    if path.exists():
        return
    rows = []
    for index, problem in enumerate(
        distinct(EVAL_PROMPTS if held_out else TRAIN_PROMPTS, 5, held_out=held_out)
    ):
        chat = [{"role": "user", "content": f"what is {problem.a}+{problem.b}"}]
        asked = {"prompt": problem.prompt} if tokenizer == "addition" else {"messages": chat}
        chosen = {"teacher": teachers[index % len(teachers)]} if len(teachers) > 1 else {}
        rows.append({**asked, "reference": problem.answer, **chosen})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
