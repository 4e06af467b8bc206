"""Tokenizers of every kind that models come with, trained in memory on a few sentences."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = (
    "What is the sum of these numbers? The answer is 42.",
    "  Two spaces, a tab\tand a newline\nare text as well.",
    "It's naïve to add 123456 + 7890 twice, isn't it?",
    "def add(a, b):\n    return a + b\n",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
GPT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer."""

    make: Callable[[], Tokenizer]
    model: str
    """The model_type that such tokenizers come with."""
    roles: Mapping[str, str]
    whole: bool = True
    """Whether it gives every text back as it was."""
    ends: bool = False
    """Whether it adds an end token, which prompts are not given."""


ROLES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NO_UNKNOWN = {name: token for name, token in ROLES.items() if name != "unk_token"}


def _byte_level(*, prefix: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return _trained_bytes(made)


def _trained_bytes(made: Tokenizer, *special: str) -> Tokenizer:
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*SPECIAL, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


def _tiktoken() -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _trained_bytes(made)


def _added() -> Tokenizer:
    """Return one whose added tokens, special or not, lie within the vocabulary and after it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = _trained_bytes(made, "<|im_start|>", "<|im_end|>")
    made.add_special_tokens([AddedToken("<|tool|>", normalized=False, special=True)])
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("numbers", lstrip=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def _sentencepiece() -> Tokenizer:
    """Return one whose 256 bytes are ordinary tokens, as in Llama 2."""
    normalizer: Any = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizer
    raw.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=140, show_progress=False))
    learned = json.loads(raw.to_str())["model"]
    tokens = [*SPECIAL, *BYTES, *sorted(learned["vocab"], key=learned["vocab"].get)]
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        [tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    made.normalizer = normalizer
    made.add_special_tokens(list(SPECIAL))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def _unigram() -> Tokenizer:
    text = " ".join(SENTENCES)
    words = sorted({f"▁{word[:size]}" for word in text.split() for size in (2, 3, 5)})
    pieces = [*sorted({*text, "▁"}), *words]  # each with a score of its own: training leaves ties
    scores = [(piece, -9.0 + len(piece) - 0.013 * place) for place, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL), *scores], unk_id=3))
    made.add_special_tokens(list(SPECIAL))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.decoder = decoders.WordPiece()
    return made


def _words() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        SENTENCES, trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    )
    return made


KINDS: Mapping[str, Kind] = {
    "byte-level BPE": Kind(_byte_level, "gpt2", NO_UNKNOWN),
    "byte-level BPE with a prefix space": Kind(
        lambda: _byte_level(prefix=True), "gpt_neox", NO_UNKNOWN, whole=False
    ),
    "byte-level BPE with tiktoken's pattern": Kind(_tiktoken, "qwen3", NO_UNKNOWN),
    "BPE with bytes as SentencePiece has it": Kind(_sentencepiece, "llama", ROLES),
    "Unigram": Kind(_unigram, "gemma2", ROLES, whole=False, ends=True),
    "WordPiece": Kind(_word_piece, "stablelm", ROLES, whole=False),
    "words": Kind(_words, "opt", ROLES, whole=False),
    "added tokens within the vocabulary": Kind(_added, "mistral", NO_UNKNOWN),
}


@cache
def backend(kind: str) -> Tokenizer:
    """Return a tokenizer of a kind, as the library `tokenizers` has it."""
    return KINDS[kind].make()


def wrapped(kind: str) -> Any:
    """Return it as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    copy = Tokenizer.from_str(backend(kind).to_str())
    return make(tokenizer_object=copy, **KINDS[kind].roles)
