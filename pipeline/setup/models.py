"""What a new run must know of its models: where they are, their commits, sizes and tokenizers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.models.loading import empty_model
from pipeline.models.naming import resolved_place
from pipeline.models.source import ModelSource, find_model, load_settings
from pipeline.models.tokenizer import model_tokenizer
from pipeline.models.tokenizeridentity import check_same_tokenizer
from pipeline.setup.hub import commit_of
from pipeline.store.place import ConfigPlace
from schemas.config.models import StudentSection
from schemas.errors import ConfigError, IdentityError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_COMMIT = "REPLACE-BY-THE-COMMIT-HASH"
"""What stands in a TOML where the hub was not reached; no command takes it for a commit."""


@dataclass(frozen=True)
class FoundModel:
    """A model that a run may have; sizes are None where its files are not here."""

    name: str
    """As it was given, a folder as its full path."""
    words: str
    revision: str | None = None
    source: ModelSource | None = None
    parameters: int | None = None
    vocabulary: int | None = None
    context: int | None = None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """Return its tokenizer, or None where its files are not here."""
        return None if self.source is None else model_tokenizer(self.source)


def look_at(place: ConfigPlace, name: str, key: str) -> FoundModel:
    """Return what is known of a model: a folder, or one of the hub.

    Args:
        place: the folder that relative paths start from.
        name: path or hub id.
        key: what messages call it, `student` or `teachers.main`.

    Raises:
        ConfigError: there is none of this name, or its files cannot be used.
    """
    folder = Path(resolved_place(place, name, key))
    if folder.exists():
        source = find_model(place, StudentSection(model=str(folder)), key)
        whole = os.path.abspath(os.path.expanduser(name))  # links stay, whatever they lead to
        return _sized(FoundModel(whole, "", source=source))
    commit = commit_of(name, key)
    found = FoundModel(name, commit.words, commit.revision or UNKNOWN_COMMIT)
    if commit.revision is None:
        return found
    section = StudentSection(model=name, revision=commit.revision)
    try:
        source = find_model(place, section, key)
        return _sized(FoundModel(name, commit.words, commit.revision, source))
    except ConfigError as error:
        words = f"{commit.words}; its files cannot be read here ({str(error).splitlines()[0]})"
        return FoundModel(name, words, commit.revision)


def same_tokenizer(
    student: FoundModel, teacher: FoundModel
) -> Literal["content", "vocabulary"] | None:
    """Return in what two tokenizers are the same; None where that cannot be said here.

    Raises:
        IdentityError: their ids mean different text, so no teacher's scores would fit.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    if ours is None or theirs is None:
        return None
    try:
        check_same_tokenizer(ours, theirs, teacher_name="main", mode="content")
        return "content"
    except IdentityError:
        check_same_tokenizer(ours, theirs, teacher_name="main", mode="vocabulary")
        return "vocabulary"


def _sized(found: FoundModel) -> FoundModel:
    assert found.source is not None
    settings = load_settings(found.source)
    model: Any = empty_model(found.source)
    parameters = sum(one.numel() for one in model.parameters())
    held = getattr(settings, "max_position_embeddings", None)
    size = int(settings.vocab_size)
    words = f"{in_words(parameters)} parameters, {size:,} ids, {held or 'any number of'} tokens"
    return FoundModel(
        name=found.name,
        words="; ".join(part for part in (words, found.words) if part),
        revision=found.revision,
        source=found.source,
        parameters=parameters,
        vocabulary=size,
        context=held if isinstance(held, int) else None,
    )


def in_words(count: float) -> str:
    """Return a large number in words."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:.0f}"
