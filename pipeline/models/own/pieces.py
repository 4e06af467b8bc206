"""Tokenizers held against their vocabulary, where no `tokenizer.json` says what they are.

Promises: of a sentencepiece model, one that passes gives the ids and the text that the library
sentencepiece gives, but for a second space before a text and special tokens within it; of a
vocabulary that has every byte, one that passes loses none.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from pipeline.models.look.jsonfiles import VOCABULARY_BYTES, read_object
from pipeline.models.look.vocabulary import SETTINGS, TOKENIZER
from pipeline.models.tokenizerfile import OWN_CODE, TEXTS, ids_apart
from schemas.errors import ConfigError, OpdError
from schemas.foreign import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGES = ("sentencepiece", "protobuf")
"""Packages that read such a file."""

ADVICE = f"give the folder the model's {TOKENIZER}, or correct tokenizer_class in {SETTINGS}"

ENTRIES = "vocab.json"
"""File of tokens and their ids, which has no merges and no rules."""

OWN_READING = "SentencePieceBackend"
"""Class of transformers that leaves the reading to the library sentencepiece itself."""

AS_IS = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}

MARK = "▁"
"""What a space is in a piece."""

MOVED = {
    "CamembertTokenizer": 4,
    **dict.fromkeys(("MBartTokenizer", "MBart50Tokenizer", "PLBartTokenizer"), 1),
    "XLMRobertaTokenizer": 1,
}
"""Classes that put further tokens before those of the file, and how many."""


def held_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", folder: Path, *, blame: type[OpdError] = ConfigError
) -> "PreTrainedTokenizerBase":
    """Return a tokenizer that reads as the vocabulary of a folder without `tokenizer.json` does.

    Args:
        tokenizer: what transformers made of it.
        folder: the folder.
        blame: the error where it does not.

    Raises:
        ConfigError: it reads otherwise, or nothing says how it should.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    if type(tokenizer).__module__.startswith(OWN_CODE):
        return tokenizer
    file = _model_file(tokenizer, folder)
    if file is not None:
        return _held_pieces(tokenizer, file, blame)
    known = tokenizer.get_vocab()
    _require_entries(known, folder, blame)
    if {*ByteLevel.alphabet()} <= known.keys():
        for text in TEXTS:
            _require_whole(tokenizer, text, folder, blame)
    return tokenizer


def _model_file(tokenizer: Any, folder: Path) -> Path | None:
    """Return the sentencepiece model that a tokenizer is read from, if it is from one."""
    named = str(tokenizer.vocab_files_names.get("vocab_file"))
    found = sorted(folder.glob("*.model"))
    return folder / named if folder / named in found else next(iter(found), None)


def _require_entries(known: Mapping[str, int], folder: Path, blame: type[OpdError]) -> None:
    """Refuse a tokenizer that has not read the list of its folder's tokens."""
    if not (folder / ENTRIES).is_file():
        return
    listed = read_object(folder / ENTRIES, most=VOCABULARY_BYTES)
    for token, index in listed.items():
        if known.get(token) != index:
            raise blame(
                f"the tokenizer of {folder} is not what {ENTRIES} says: the id of {shown(token)} "
                f"is {known.get(token)}, expected {shown(index)}: {ADVICE}"
            )


def _require_whole(tokenizer: Any, text: str, folder: Path, blame: type[OpdError]) -> None:
    """Refuse a tokenizer that has all bytes and yet loses some; that it joins accents is well."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    said = tokenizer.decode(ids, **AS_IS)
    if normalize("NFC", said) != normalize("NFC", text):
        raise blame(
            f"the tokenizer of {folder} loses text: {shown(text)} comes back as {shown(said)}, and "
            f"its vocabulary has every byte. transformers reads it as {type(tokenizer).__name__}: "
            f"{ADVICE}"
        )


def _held_pieces(
    tokenizer: "PreTrainedTokenizerBase", file: Path, blame: type[OpdError]
) -> "PreTrainedTokenizerBase":
    lacking = list(_lacking())
    if lacking:
        raise ConfigError(
            f"the tokenizer in {file.parent} is a {file.name} alone, and what transformers makes "
            f"of it is held against {lacking[0]}, which is not installed: pip install "
            f"{' '.join(lacking)}, or give the folder the model's {TOKENIZER}"
        )
    own = _Pieces.read(file)
    if any(kind.__name__ == OWN_READING for kind in type(tokenizer).__mro__):
        return tokenizer
    if own is None:
        raise blame(
            f"the tokenizer of {file.parent} cannot be held: {file.name} is no sentencepiece "
            "model. A table of ranks (tiktoken) does not say where a text is cut into words, which "
            f"transformers would guess: give the folder the model's {TOKENIZER}"
        )
    difference = own.difference(tokenizer)
    if difference is None:
        return tokenizer
    again = _as_llama(file.parent, own.prefix)
    if again is not None and own.difference(again) is None:
        return again
    raise blame(
        f"the tokenizer of {file.parent} is not what {file.name} says: {difference}. transformers "
        f"makes {type(tokenizer).__name__} of it, which reads text otherwise than the library "
        f"sentencepiece: {ADVICE}"
    )


def _as_llama(folder: Path, prefix: bool) -> "PreTrainedTokenizerBase | None":
    """Return what the class of byte-pair models with byte pieces makes of a folder, if it can."""
    from transformers import LlamaTokenizer

    make: Any = LlamaTokenizer
    try:
        found: PreTrainedTokenizerBase = make.from_pretrained(folder, add_prefix_space=prefix)
    except Exception:  # the class is not for this file
        return None
    return found


def _lacking() -> Iterator[str]:
    for package in PACKAGES:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package


class _Pieces:
    """A sentencepiece model as the library reads it."""

    def __init__(self, model: Any, prefix: bool) -> None:
        self.prefix = prefix
        """Whether a space is put before each text."""
        model.normalizer_spec.add_dummy_prefix = prefix
        library: Any = import_module("sentencepiece")
        self._own = library.SentencePieceProcessor(model_proto=model.SerializeToString())
        self._names = [piece.piece for piece in model.pieces]
        kinds = (model.SentencePiece.NORMAL, model.SentencePiece.BYTE)
        self._ordinary = [i for i, piece in enumerate(model.pieces) if piece.type in kinds]

    @classmethod
    def read(cls, file: Path) -> "_Pieces | None":
        """Return a model from its file, or None where it is something else.

        The settings beside it may say otherwise than the file whether it puts a space first.
        """
        beside = file.parent / SETTINGS
        said = read_object(beside).get("add_prefix_space") if beside.is_file() else None
        data = file.read_bytes()
        model: Any = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
        try:
            model.ParseFromString(data)
            prefix = model.normalizer_spec.add_dummy_prefix if said is None else said
            return cls(model, bool(prefix)) if model.pieces else None
        except Exception:  # whatever the parser says of other bytes
            return None

    def difference(self, tokenizer: Any) -> str | None:
        """Return, in words, the first thing that a tokenizer has otherwise."""
        known = tokenizer.get_vocab()
        moved = MOVED.get(type(tokenizer).__name__, 0)
        for index in self._ordinary:
            name = self._names[index]
            if known.get(name) != index + moved:
                expected = f"expected {index + moved}"
                return f"the id of its piece {shown(name)} is {known.get(name)}, {expected}"
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        for text in TEXTS:
            if any(token in text for token in added) or self._is_free(text):
                continue
            if told := self._of_text(tokenizer, text, moved):
                return told
        return None

    def _is_free(self, text: str) -> bool:
        """Return whether readers differ in the space before a text that begins with one."""
        return self.prefix and text.startswith((" ", MARK))

    def _of_text(self, tokenizer: Any, text: str, moved: int) -> str | None:
        ids = self._own.encode(text)
        unknown = self._own.unk_id() in ids
        expected = [i + moved if i != self._own.unk_id() else tokenizer.unk_token_id for i in ids]
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != expected:
            return f"{shown(text)} becomes {ids_apart(found, expected)}"
        said = self._own.decode(ids)
        mine = tokenizer.decode(
            found, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if mine != said and not unknown:  # each has its own text for it
            return f"the ids of {shown(text)} become {shown(mine)}, expected {shown(said)}"
        return None
