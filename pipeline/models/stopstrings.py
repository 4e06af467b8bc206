"""Stop strings: where a response ends by what it says, the same for every engine.

The text of a response is what its tokens add to the text of its prompt, as the tokenizer writes it,
special tokens too. A character counts once all its bytes are there. vLLM reads text the same way.
Promises: ids are read and never made. Shapes: V ids.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import model_tokenizer, vocabulary_size
from schemas.columns import Ids
from schemas.config.section import UNFINISHED
from schemas.errors import ConfigError

APPENDING = {"ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}
"""Decoders that write a token where it stands, whichever follow it."""

LOST_PLACE = "Invalid prefix"
"""What `tokenizers` says where bytes before a token turn out to be no character, and so the text
that was read is no longer the beginning of the text."""


class StopStrings:
    """Some stop strings, and the tokenizer that says what tokens mean."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        """Take them.

        Raises:
            ConfigError: the tokenizer cannot be read token by token.
        """
        self.strings, self._tokenizer = tuple(strings), tokenizer
        self.backend = reading_backend(tokenizer)

    def end(self, prompt: Ids, response: Ids) -> int | None:
        """Return after how many tokens a response ends by its text, or None where it does not."""
        reading = Reading(self, prompt)
        ends = (n for n, token in enumerate(response.tolist(), 1) if reading.add(token))
        return next(ends, None)

    def first_text(self, prompt: Ids, response: Ids) -> str | None:
        """Return the first whole characters of a response, or None where it has none."""
        reading = Reading(self, prompt)
        pieces = (reading.piece(token) or "" for token in response.tolist())
        return next((piece for piece in pieces if piece and UNFINISHED not in piece), None)

    def beside(self, string: str) -> "StopStrings":
        """Return as many stop strings, one of them another."""
        return StopStrings(self._tokenizer, (string, *self.strings[1:]))

    @cached_property
    def may_end_V(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape suffix
        """Whether a token may complete a stop string where no bytes before it wait for more.

        One more entry stands for all ids that the tokenizer does not know, which say nothing.
        """
        size = vocabulary_size(self._tokenizer)
        if not _is_appending(self.backend):
            return np.ones(size + 1, dtype=np.bool_)
        twice = [[index, index] for index in range(size)]  # the second one stands inside a text
        texts = self.backend.decode_batch(twice, skip_special_tokens=False)
        last = {UNFINISHED, *(string[-1] for string in self.strings)}
        return np.array([not last.isdisjoint(text) for text in (*texts, "")])


class Reading:
    """The text of one response, read as its tokens come."""

    def __init__(self, stops: StopStrings, prompt: Ids) -> None:
        """Begin after a prompt, whose text does not count."""
        self._stops, self._longest = stops, max(map(len, stops.strings))
        self._stream = DecodeStream(ids=prompt.tolist(), skip_special_tokens=False)
        self._text = ""
        self.tokens = 0
        self.waits = False
        """Whether the last token's bytes may belong to a character that is not whole yet."""

    def add(self, token: int) -> bool:
        """Read one token more; return whether the text now has a stop string."""
        piece = self.piece(token)
        self.tokens += 1
        self.waits = piece is None
        self._text = self._text[-self._longest :] + (piece or "")
        return any(string in self._text for string in self._stops.strings)

    def piece(self, token: int) -> str | None:
        """Return the characters that a token makes whole, as vLLM does, or None."""
        try:
            return self._stream.step(self._stops.backend, token)
        except Exception as error:  # `tokenizers` raises a bare Exception
            if not str(error).startswith(LOST_PLACE):
                raise
        self._stream = DecodeStream(skip_special_tokens=False)
        return self._stream.step(self._stops.backend, token)


class ModelStops:
    """Stop strings of a model, whose tokenizer is read once for the same strings."""

    def __init__(self, source: ModelSource) -> None:
        """Remember the model; nothing is read yet."""
        self._source = source
        self._read: dict[tuple[str, ...], StopStrings] = {}

    def of(self, strings: tuple[str, ...]) -> StopStrings | None:
        """Return stop strings with the model's tokenizer; None where there are no strings.

        Raises:
            ConfigError: there is no tokenizer, or it cannot be read token by token.
        """
        if strings and strings not in self._read:
            self._read[strings] = StopStrings(model_tokenizer(self._source), strings)
        return self._read.get(strings)


def reading_backend(tokenizer: Any) -> Tokenizer:
    """Return what reads text token by token.

    Raises:
        ConfigError: the tokenizer has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(
            f"rollout.stop_strings need a tokenizer that writes text token by token, from a "
            f"tokenizer.json; that of {tokenizer.name_or_path} is a {type(tokenizer).__name__}. "
            "Convert it to a fast tokenizer, or set rollout.stop_token_ids instead"
        )
    return backend


def check_prompts(tokenizer: Any, prompts: Sequence[Ids]) -> None:
    """Make sure that the text of a response can be told from that of its prompt.

    Raises:
        ConfigError: a prompt ends inside a character.
    """
    backend = reading_backend(tokenizer)
    texts = backend.decode_batch([p.tolist() for p in prompts], skip_special_tokens=False)
    for prompt, text in zip(prompts, texts, strict=True):
        if text.endswith(UNFINISHED):
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens ends inside a character (… {text[-20:]!r}, id "
                f"{prompt[-1]}), so with rollout.stop_strings its responses would begin inside "
                "one: correct the prompt file, or set rollout.stop_token_ids instead"
            )


def _is_appending(backend: Tokenizer) -> bool:
    """Return whether the text of a token does not depend on those that follow it."""
    if backend.decoder is None:
        return True
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    parts = state.get("decoders", [state])
    return all(part["type"] in APPENDING and not part.get("stop") for part in parts)
