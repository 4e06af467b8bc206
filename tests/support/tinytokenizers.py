"""Small tokenizers of each kind, made in memory."""

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.models import tokenizer as tk

Fast: Any = PreTrainedTokenizerFast  # its constructor is untyped

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def char_tokenizer(characters: str = "abc 123", **roles: str) -> Any:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return Fast(tokenizer_object=backend, **(ROLES | roles))


def bpe_backend(vocab_size: int = 300) -> Tokenizer:
    chooser = random.Random(0)
    words = ["".join(chooser.choices("abcdefgh", k=chooser.randint(2, 6))) for _ in range(200)]
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(words)], trainer)
    return backend


def load(location: str | Path, **kwargs: Any) -> Any:
    kwargs = {"revision": None, "trust_remote_code": False} | kwargs
    return tk.load_tokenizer(str(location), **kwargs)
