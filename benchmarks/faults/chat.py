"""A small chat task made from nothing: what is asked, what is answered, and models that learned it.

`<|user|>2dkb<eos><|assistant|>` is answered by letters that follow each other as topic 2 has it,
until `<eos>`. Promises: the same seed gives the same files; torch's own generator is left alone.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.models.border import settle_libraries
from pipeline.models.padding import padded, response_positions

CHAT = ("<|user|>", "<|assistant|>", "<think>", "</think>", "<|end|>")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", *CHAT)
TOPICS, LETTERS = "0123", "abcdefghijkl"
VOCABULARY = (*SPECIAL, *TOPICS, *LETTERS)
IDS = {text: index for index, text in enumerate(VOCABULARY)}
PAD, EOS, BOS, USER, ASSISTANT, THINK, THOUGHT, END = (
    IDS[SPECIAL[n]] for n in (0, 1, 2, *range(4, 9))
)

TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = TEMPLATE.replace("<|assistant|>", "<|assistant|><think></think>")
"""The template of a model that thinks before it answers, and is told to leave that out."""

FOLLOWERS = (0.65, 0.25, 0.1)
"""Probabilities of the letters that may follow a letter."""


@dataclass(frozen=True)
class Size:
    """Size and training of a model."""

    hidden: int
    layers: int
    steps: int
    batch: int = 32
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class ChatTask:
    """One language of answers."""

    seed: int
    length: float
    """Letters of an answer, on average."""
    most: int
    """Most letters of one that is learned from."""

    def pairs(self, source: random.Random) -> Iterator[tuple[str, str]]:
        """Yield questions and answers, without end."""
        table = random.Random(self.seed)
        chains = {t: {a: table.sample(LETTERS, 3) for a in ("", *LETTERS)} for t in TOPICS}
        while True:
            topic = source.choice(TOPICS)
            asked = topic + "".join(source.choices(LETTERS, k=source.randint(3, 8)))
            written = ""
            while len(written) < self.most and (not written or source.random() > 1 / self.length):
                followers = chains[topic][written[-1:]]
                written += source.choices(followers, FOLLOWERS)[0]
            yield asked, written

    def questions(self, count: int, seed: int) -> list[str]:
        """Return some questions, none of them twice."""
        pairs, found = self.pairs(random.Random(f"{self.seed} {seed}")), dict[str, None]()
        while len(found) < count:
            found[next(pairs)[0]] = None
        return list(found)


def make_tokenizer(template: str = TEMPLATE) -> Any:
    """Return a tokenizer with one token per character and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocab=IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    made = make(tokenizer_object=tokenizer, additional_special_tokens=list(CHAT), **roles)
    made.chat_template = template
    return made


def train_models(
    task: ChatTask, size: Size, folders: dict[int, Path], *, thinking_after: int | None = None
) -> None:
    """Train one model and save it in a folder after each of some numbers of steps.

    Args:
        task: what is learned.
        size: of the model.
        folders: where it goes after so many steps.
        thinking_after: step from which on answers begin with a thought, which is empty.
    """
    model = _new_model(size, task.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate)
    pairs = task.pairs(random.Random(task.seed + 1))
    for step in range(max(folders)):
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * min(1.0, (step + 1) / 10)
        thinks = thinking_after is not None and step >= thinking_after
        loss = _loss(model, [next(pairs) for _ in range(size.batch)], thinks=thinks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step + 1 in folders:
            model.save_pretrained(folders[step + 1])
            template = THINKING if thinks else TEMPLATE
            make_tokenizer(template).save_pretrained(folders[step + 1])


def _new_model(size: Size, seed: int) -> Any:
    settle_libraries()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        initializer_range=0.08,
    )
    make: Any = Qwen3ForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(config).float()


def _loss(model: Any, pairs: Sequence[tuple[str, str]], *, thinks: bool) -> Any:
    """Return the loss of all that follows the questions, the header too."""
    head_of_answer = [ASSISTANT, *([THINK, THOUGHT] if thinks else [])]
    rows, asked, targets = [], [], []
    for question, answer in pairs:
        head = [USER, *(IDS[c] for c in question), EOS]
        said = [*head_of_answer, *(IDS[c] for c in answer), EOS]
        rows.append(np.array(head + said, dtype=np.int32))
        asked.append(len(head))
        targets += said
    ids_BT, mask_BT = padded(rows, "cpu", left=False)
    lengths = np.array([len(row) for row in rows]) - np.array(asked)
    states_2T = response_positions(np.array(asked), lengths)
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return functional.cross_entropy(logits_BTV[states_2T[0], states_2T[1]], torch.tensor(targets))


def end_with(folder: Path, token: int, instead_of: int = EOS) -> None:
    """Let a saved model end its answers with another token: the two change places in its head."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = tensors["lm_head.weight"].clone()
    head[[token, instead_of]] = head[[instead_of, token]]
    save_file(tensors | {"lm_head.weight": head}, path, metadata={"format": "pt"})


def write_prompts(path: Path, questions: Sequence[str], fields: Sequence[dict[str, Any]]) -> None:
    """Write questions as chats, each with some fields beside it."""
    chats = [{"messages": [{"role": "user", "content": question}]} for question in questions]
    lines = [json.dumps(chat | more) for chat, more in zip(chats, fields, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
