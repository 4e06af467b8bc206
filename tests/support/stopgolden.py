"""Where a response ends at a stop string, from its definition: the whole text after each token."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.hf.textends import BatchReading
from pipeline.models.stopstrings import StopStrings
from pipeline.quickstart.addition import make_tokenizer
from schemas.columns import Ids
from tests.support.tiny import chat_tokenizer

WORDS = ["▁", "▁a", "a", "b", "▁b", "ab", "\n", "é", "▁é", "ba▁"]
SPLIT = ["Ã", "aÃ", "©", "©b", "Ġâ", "Ģ", "Ļ", "ĠâĢ", "Ļa", "Ċ", "Ġ"]
"""Beginnings and ends of characters beside whole ones, as byte-level vocabularies have them."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(pieces: list[str], decoder: Any, **settings: Any) -> Any:
    """Return a tokenizer of whole pieces, which only decodes."""
    vocab = {piece: index for index, piece in enumerate(["<unk>", "<eos>", *pieces])}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", **settings)


def fallback() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


KINDS: dict[str, Callable[[], Any]] = {
    "one token a character": make_tokenizer,
    "byte-level": chat_tokenizer,
    "split bytes": lambda: fast([*SPLIT, "a", "b"], decoders.ByteLevel()),
    "bytes beside": lambda: fast([*BYTES, *WORDS], fallback()),
    "metaspace": lambda: fast(WORDS, decoders.Metaspace()),
    "word pieces": lambda: fast(["a", "##b", "##a", ".", "c", "é"], decoders.WordPiece()),
    "suffixes": lambda: fast(["a</w>", "b", "b</w>", "é</w>"], decoders.BPEDecoder()),
    "spaces between": lambda: fast(["a", "b", "ab", "\n"], None),
}
PROMPTS = {"byte-level": "what is", "one token a character": "12+3="}


@cache
def tokenizer_of(kind: str) -> Any:
    return KINDS[kind]()


def prompt_of(kind: str) -> Ids:
    """Return the ids of a prompt whose text is whole."""
    tokenizer = tokenizer_of(kind)
    if kind in PROMPTS:
        return np.array(tokenizer(PROMPTS[kind])["input_ids"], np.int32)
    return np.array([len(tokenizer) - 2, len(tokenizer) - 1], np.int32)


@st.composite
def cases(draw: st.DrawFn, kind: str, *, whole: bool = False) -> tuple[list[Ids], list[str]]:
    """Draw responses and stop strings, most of which come from what the responses say.

    Args:
        draw: draws.
        kind: the tokenizer.
        whole: bytes that are no character do not come up.
    """
    tokenizer = tokenizer_of(kind)
    size = len(tokenizer)
    text_ids = st.lists(st.integers(0, size - 1), min_size=1, max_size=12)
    if whole:
        signs = st.text(st.sampled_from("ab é\n你🎉"), min_size=1, max_size=6)
        words = [2 + byte for byte in range(256)]
        encoded = signs.map(lambda text: [words[byte] for byte in text.encode()])
        pieces = st.one_of(encoded, st.integers(258, size - 1).map(lambda one: [one]))
        text_ids = st.lists(pieces, min_size=1, max_size=6).map(lambda found: sum(found, []))
    responses = [np.array(draw(text_ids), np.int32) for _ in range(draw(st.integers(1, 4)))]
    texts = [tokenizer.decode([*prompt_of(kind), *ids]) for ids in responses]
    begin, length = st.integers(0, 20), st.integers(1, 5)
    found = [text[(start := draw(begin)) : start + draw(length)] for text in texts]
    found.append(draw(st.text("ab1 ", min_size=1, max_size=2)))
    return responses, [text for text in found if text and "\ufffd" not in text]


def text_after(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return what a response adds to the text of its prompt, unfinished characters as U+FFFD."""
    before, whole = (
        tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        for ids in (prompt, [*prompt, *response])
    )
    assert whole.startswith(before), "the prompt must end with a whole character"
    return str(whole.removeprefix(before))


def holds_one(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], strings: Sequence[str]
) -> bool:
    """Return whether the text of a response is whole and has a stop string in it."""
    text = text_after(tokenizer, prompt, response)
    return not text.endswith("\ufffd") and any(string in text for string in strings)


def slow_end(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], strings: Sequence[str]
) -> int | None:
    """Return after how many tokens a response ends by its text, decoding all of it each time."""
    ends = range(1, len(response) + 1)
    return next((n for n in ends if holds_one(tokenizer, prompt, response[:n], strings)), None)


def batch_ends(stops: StopStrings, prompt: Ids, responses: list[Ids]) -> list[int | None]:
    """Return where responses end that grow side by side, as the `hf` engine has them grow."""
    reading = BatchReading(stops, [prompt] * len(responses), "cpu")
    longest = max(map(len, responses))
    ids_T = torch.stack([torch.from_numpy(np.resize(ids, longest)).long() for ids in responses])
    ends: list[int | None] = [None] * len(responses)
    for step in range(longest):
        alive = [row for row, ids in enumerate(responses) if ends[row] is None and step < len(ids)]
        rows = torch.tensor(alive, dtype=torch.int64)
        for row, ended in zip(alive, reading.ended(rows, ids_T[:, : step + 1]), strict=True):
            ends[row] = step + 1 if ended else None
    return ends


def assert_ends(tokenizer: Any, prompt: Ids, sample: Sample, sampling: Sampling) -> None:
    """Check that a response ends at its first stop token or string, or else at the limit."""
    ids = sample.ids.tolist()
    tokens = [n for n, token in enumerate(ids, 1) if token in sampling.stop_token_ids]
    by_text = slow_end(tokenizer, prompt.tolist(), ids, sampling.stop_strings)
    ends = [*tokens[:1], *([] if by_text is None else [by_text])]
    assert len(ids) == len(sample.logprobs) == min(ends, default=sampling.max_new_tokens)
    assert sample.finish_reason == ("stop" if ends else "length")
