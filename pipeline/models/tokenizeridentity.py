"""Digests of what a tokenizer means, and whether two tokenizers mean the same."""

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from pipeline.models.tokenizer import shortened
from schemas.errors import IdentityError
from schemas.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ROLES = {
    "eos_token": "end-of-sequence token",
    "bos_token": "start-of-sequence token",
    "pad_token": "padding token",
    "unk_token": "unknown token",
}
"""Special tokens in words."""

_DIGESTS: WeakKeyDictionary["PreTrainedTokenizerBase", str] = WeakKeyDictionary()
"""Digests of tokenizers that are held: nobody changes one, and a large one takes half a second."""


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the digest of how text becomes ids and ids become text, special roles left out."""
    if tokenizer not in _DIGESTS:
        _DIGESTS[tokenizer] = fingerprint(_vocabulary(tokenizer))
    return _DIGESTS[tokenizer]


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the digest of the vocabulary and of the tokens with a special role."""
    return fingerprint({"vocabulary": vocabulary_digest(tokenizer), "special": _special(tokenizer)})


def template_digest(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the digest of the chat template, or None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return None if not template else fingerprint(template)


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
    if difference := _meant_otherwise(student, teacher):
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


def _meant_otherwise(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase"
) -> str | None:
    if vocabulary_digest(student) == vocabulary_digest(teacher):
        return None
    return _vocabulary_difference(_vocabulary(student), _vocabulary(teacher))


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
                f"the {part} is {shortened(json.dumps(ours))} for the student and "
                f"{shortened(json.dumps(theirs))} for the teacher"
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
