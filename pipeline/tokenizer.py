"""Tokenizers: loading them, digests of what they mean, and whether two of them are the same.

Promises: a digest depends on what ids mean, never on a folder's name, padding side, longest
length or chat template. Transformers is imported inside functions only.
"""

import json
import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.models import ModelSource
from schemas.errors import ConfigError, IdentityError
from schemas.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Patterns of files that hold a vocabulary; without one, transformers makes an empty tokenizer."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

ROLES = {
    "eos_token": "end-of-sequence token",
    "bos_token": "start-of-sequence token",
    "pad_token": "padding token",
    "unk_token": "unknown token",
}
"""Special tokens in words."""

SHOWN_CHARS = 80


def load_tokenizer(
    location: str, *, revision: str | None, trust_remote_code: bool
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a folder or a hub id.

    Raises:
        ConfigError: no such folder or hub id, or it holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    folder = Path(location).expanduser()
    local = folder.exists() or (revision is None and not HUB_ID.fullmatch(location))
    if local:
        _check_folder(folder, needs_files=not trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if local else location,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # a damaged tokenizer.json makes `tokenizers` raise a bare Exception
        raise _unreadable(location, revision, error, local=local) from error
    if tokenizer.vocab_size < 2:
        raise ConfigError(
            f"{location} holds no tokenizer: its vocabulary is empty. Expected one of "
            f"{', '.join(VOCABULARY_FILES)}; copy the tokenizer's files there"
        )
    return tokenizer


def model_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """Return a model's tokenizer; that of its base for an adapter that comes without one.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    place = tokenizer_place(source)
    return load_tokenizer(
        place.location, revision=place.revision, trust_remote_code=place.trust_remote_code
    )


def tokenizer_place(source: ModelSource) -> ModelSource:
    """Return where a model's tokenizer is: beside it, or beside its base for an adapter."""
    return source if _has_vocabulary(Path(source.location)) else source.whole


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the digest of how text becomes ids and ids become text, special roles left out."""
    return fingerprint(_vocabulary(tokenizer))


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the digest of the vocabulary and of the tokens with a special role."""
    return fingerprint({"vocabulary": vocabulary_digest(tokenizer), "special": _special(tokenizer)})


def template_digest(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the digest of the chat template, or None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return None if not template else fingerprint(template)


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return one more than the largest id that the tokenizer knows, gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def check_same_tokenizer(
    student: "PreTrainedTokenizerBase",
    teacher: "PreTrainedTokenizerBase",
    *,
    teacher_name: str,
    mode: Literal["content", "vocabulary"],
) -> None:
    """Make sure that a teacher reads the student's ids as the student means them.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        teacher_name: name of the teacher in the configuration.
        mode: `content` compares everything, `vocabulary` leaves special-token roles out.

    Raises:
        IdentityError: they differ; the message says in what first.
    """
    head = f"the tokenizers of the student and of teacher {teacher_name!r} differ: "
    ours, theirs = _vocabulary(student), _vocabulary(teacher)
    if difference := _vocabulary_difference(ours, theirs):
        raise IdentityError(
            f"{head}{difference}. Scores would belong to other text: take a teacher and a student "
            "of one tokenizer family, or give both folders the same tokenizer files"
        )
    difference = _special_difference(_special(student), _special(teacher))
    if difference and mode == "content":
        raise IdentityError(
            f"{head}{difference}. All ids mean the same text and only the special roles differ; if "
            f'that is intended, set teachers.{teacher_name}.tokenizer_check = "vocabulary"'
        )


def end_token_ids(
    tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig | None"
) -> tuple[int, ...]:
    """Return every id that ends a response, from the tokenizer and the generation configuration.

    Raises:
        ConfigError: neither names one.
    """
    found: set[int] = set()
    for holder in (tokenizer, generation_config):
        ids = getattr(holder, "eos_token_id", None)
        found.update([] if ids is None else ids if isinstance(ids, list | tuple) else [ids])
    if not found:
        raise ConfigError(
            "neither the tokenizer nor generation_config.json names an end-of-sequence token, so "
            "no response would end: set rollout.stop_token_ids, or eos_token in the student's "
            "tokenizer_config.json"
        )
    return tuple(sorted(int(i) for i in found))


def _check_folder(folder: Path, *, needs_files: bool) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"no tokenizer at {folder}: there is no such folder. Expected a folder with a "
            "tokenizer.json; correct the path"
        )
    if needs_files and not _has_vocabulary(folder):
        raise ConfigError(
            f"no tokenizer in {folder}: expected one of {', '.join(VOCABULARY_FILES)}. Copy the "
            "tokenizer's files there, or save it with tokenizer.save_pretrained"
        )


def _has_vocabulary(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in VOCABULARY_FILES)


def _unreadable(
    location: str, revision: str | None, error: Exception, *, local: bool
) -> ConfigError:
    text = str(error)
    if "trust_remote_code" in text:
        return ConfigError(
            f"the tokenizer of {location} comes with Python code of its own: read that code, then "
            "set trust_remote_code = true in its section"
        )
    if local:
        first = next(iter(text.strip().splitlines()), type(error).__name__)
        return ConfigError(
            f"the tokenizer in {location} cannot be read: {_short(first)}. Expected a "
            "tokenizer.json that this version of transformers knows; copy the files again"
        )
    return ConfigError(
        f"no tokenizer for the hub id {location!r} (revision {revision}): there is no folder of "
        "that name, the hub has not been reached, and nothing is in the local cache. Correct the "
        "id, connect to the hub (HF_HUB_OFFLINE unset, HF_TOKEN for private models), or download "
        "the model and give its folder"
    )


def _vocabulary(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return what gives ids their meaning: flat lists, quick to write (two items a merge)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _slow_vocabulary(tokenizer)
    content = json.loads(backend.to_str())
    model = content["model"]
    pieces, scores = model.pop("vocab"), None
    if isinstance(pieces, list):  # Unigram: [piece, score] in the order of ids
        scores = [score for _, score in pieces]
        pieces = {piece: index for index, (piece, _) in enumerate(pieces)}
    ids = pieces | {added["content"]: added["id"] for added in content["added_tokens"]}
    merges = model.pop("merges", None) or []
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return {
        **_by_id(ids),
        "merges": list(chain.from_iterable(pairs)),
        "scores": scores,
        "model": {key: value for key, value in model.items() if _is_set(value)},
        "normalizer": content.get("normalizer"),
        "pre-tokenizer": content.get("pre_tokenizer"),
        "decoder": content.get("decoder"),
    }


def _is_set(value: object) -> bool:
    """Return whether an option of a model is set; releases differ in how they write the default."""
    return value not in (None, "") and value is not False


def _slow_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    ids = dict(tokenizer.get_vocab())
    ids |= {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    ranks: dict[tuple[str, str], int] = getattr(tokenizer, "bpe_ranks", {})
    merges = [piece for pair in sorted(ranks, key=ranks.__getitem__) for piece in pair]
    return {**_by_id(ids), "merges": merges, "model": {"type": type(tokenizer).__name__}}


def _by_id(ids: dict[str, int]) -> dict[str, Any]:
    ordered = sorted(ids.items(), key=lambda item: (item[1], item[0]))
    return {"tokens": [token for token, _ in ordered], "ids": [index for _, index in ordered]}


def _special(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    found = {
        role: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for role, value in tokenizer.special_tokens_map.items()
    }
    return {role: found[role] for role in sorted(found, key=lambda r: (r not in ROLES, r))}


def _vocabulary_difference(student: dict[str, Any], teacher: dict[str, Any]) -> str | None:
    if (student["tokens"], student["ids"]) != (teacher["tokens"], teacher["ids"]):
        return _id_difference(student, teacher)
    for index, pair in enumerate(zip(student["merges"], teacher["merges"], strict=False)):
        if pair[0] != pair[1]:
            even = index - index % 2
            ours, theirs = (side["merges"][even : even + 2] for side in (student, teacher))
            return f"merge {even // 2} is {ours} for the student and {theirs} for the teacher"
    for part in student | teacher:
        ours, theirs = student.get(part), teacher.get(part)
        if ours != theirs and part in ("merges", "scores"):
            return f"the {part} differ"
        if ours != theirs:
            return (
                f"the {part} is {_short(json.dumps(ours))} for the student and "
                f"{_short(json.dumps(theirs))} for the teacher"
            )
    return None


def _id_difference(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    ours = dict(zip(student["ids"], student["tokens"], strict=True))
    theirs = dict(zip(teacher["ids"], teacher["tokens"], strict=True))
    first = min((i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i)), default=0)
    sizes = f"vocabularies of {len(ours)} and {len(theirs)} entries"
    mine, yours = (repr(names[first]) if first in names else "nothing" for names in (ours, theirs))
    return f"id {first} is {mine} for the student and {yours} for the teacher ({sizes})"


def _special_difference(student: dict[str, Any], teacher: dict[str, Any]) -> str | None:
    for role in [*student, *(r for r in teacher if r not in student)]:
        if student.get(role) != teacher.get(role):
            ours, theirs = (repr(s[role]) if role in s else "unset" for s in (student, teacher))
            name = ROLES.get(role, role)
            return f"the {name} is {ours} for the student, {theirs} for the teacher"
    return None


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
