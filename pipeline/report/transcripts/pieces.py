"""Token ids as text, piece by piece: the bytes of one character stay together.

Promises: pieces joined are the text of all ids; where no tokenizer can be loaded, ids are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.opening import opened_model
from pipeline.runs.run import Run
from schemas.errors import OpdError

HALF = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""

LONGEST = 8
"""Tokens that one character may take; what is longer is no character."""

SPACE = "\u2581"
"""What stands for a space in pieces of SentencePiece, whose decoder drops a leading one."""


@dataclass(frozen=True)
class Piece:
    """Text of one or more ids that belong together."""

    text: str
    tokens: int


class Pieces:
    """The ids of one tokenizer as text."""

    def __init__(
        self, decode: Callable[[list[int]], str], name: Callable[[int], str | None]
    ) -> None:
        """Take a tokenizer's two ways of telling ids: as text, and as entries of its vocabulary."""
        self._decode, self._name = decode, name
        self._texts: dict[tuple[int, ...], str] = {}
        self._alone: dict[int, str] = {}

    def split(self, ids: Sequence[int]) -> list[Piece]:
        """Return ids as pieces of text, in order."""
        found, before, start = list[Piece](), 0, 0
        for end in range(1, len(ids) + 1):
            text = self._text(ids[before:end])
            if text.endswith(HALF) and end < len(ids) and end - start < LONGEST:
                continue
            known = self._text(ids[before:start])
            new = text[len(known) :] if text.startswith(known) else self._text(ids[start:end])
            found += self._pieces(new, ids[start:end])
            before, start = start, end
        return found

    def _pieces(self, text: str, ids: Sequence[int]) -> list[Piece]:
        """Return ids as one piece; as two where bytes that are no character precede whole text."""
        last = self._text(ids[-1:])
        if len(ids) > 1 and text.startswith(HALF) and HALF not in last and text.endswith(last):
            return [Piece(text[: len(text) - len(last)], len(ids) - 1), Piece(last, 1)]
        return [Piece(text or self.one(ids[0]), len(ids))]

    def one(self, token: int) -> str:
        """Return the text of an id alone; of a part of a character, its entry of the vocabulary."""
        if token not in self._alone:
            text, name = self._text([token]), self._name(token) or ""
            if name.startswith(SPACE) and not text.startswith(" "):
                text = f" {text}"
            self._alone[token] = (name if HALF in text or not text else text) or numbered(token)
        return self._alone[token]

    def _text(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in self._texts:
            self._texts[key] = self._decode(list(ids)) if ids else ""
        return self._texts[key]


def numbered(token: int) -> str:
    """Return an id as it stands for its own text."""
    return f"⟨{token}⟩"


IDS = Pieces(lambda ids: "".join(map(numbered, ids)), lambda _: None)
"""Ids that stand for their own text, where there is no tokenizer."""


def student_pieces(run: Run) -> tuple[Pieces, str | None]:
    """Return the student's ids as text, and why they are numbers where they are.

    The tokenizer is that of the pinned student: of checkpoint 0, which the first samples came from.
    """
    manifest = run.checkpoint(0)
    if manifest is None:
        return IDS, "the student is not stored yet"
    try:
        from pipeline.models.tokenizer import stored_tokenizer

        with opened_model(run, manifest, weights=False) as source:
            tokenizer: Any = stored_tokenizer(source)
    except (OpdError, ImportError) as error:
        return IDS, f"{error}"
    return Pieces(_decoder(tokenizer), _namer(tokenizer)), None


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    def decode(ids: list[int]) -> str:
        known = [one for one in ids if one < len(tokenizer)]
        if len(known) < len(ids):  # a padded vocabulary has ids that mean nothing
            return "".join(decode([one]) if one in known else numbered(one) for one in ids)
        return str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    return decode


def _namer(tokenizer: Any) -> Callable[[int], str | None]:
    def name(token: int) -> str | None:
        found = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
        return found if isinstance(found, str) else None

    return name
