"""Every kind of tokenizer: its ids are the library's own, in the store and after an export."""

from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.models.tokenizer import load_tokenizer
from pipeline.models.tokenizeridentity import tokenizer_digest
from pipeline.store.storage import Storage
from tests.support.promptfiles import pin, rows_of, run_of, write_lines
from tests.support.zoomodels import kind_of, make_random
from tests.support.zootokenizers import KINDS, backend, wrapped

TEXTS = (
    "What is the sum of 12 and 3456789?",
    " a space first, two  within, one at the end ",
    "tabs\tand\n\nnewlines\n",
    "naïve café, 東京, 🙂, a\u0301",
    "It's <|im_start|>user, said <think> the numbers </s> and <unk>",
    "def add(a, b):\n    return a + b",
)


def folder_of(kind: str, folder: Path) -> Path:
    """Write a model that such a tokenizer comes with, and the tokenizer beside it."""
    made = KINDS[kind].model
    model = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[made]
    make_random(folder, kind_of(made), model, {"vocab_size": 512, "initializer_range": 0.02})
    for left in folder.glob("*token*"):
        left.unlink()
    wrapped(kind).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return load_tokenizer(str(folder), revision=None, trust_remote_code=False)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizer_json_when_pinned_and_after_an_export(
    kind: str, memory: Storage, tmp_path: Path
) -> None:
    expected = [backend(kind).encode(text).ids for text in TEXTS]
    assert len({tuple(ids) for ids in expected}) == len(TEXTS)
    first = load(folder_of(kind, tmp_path / "model"))
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": text} for text in TEXTS])
    given = ("prompts.max_tokens=200", "prompts.add_special_tokens=true")
    pinned = rows_of(memory, pin(memory, path, *given, tokenizer=first))
    end = -1 if KINDS[kind].ends else None
    assert [row["prompt_ids"] for row in pinned] == [ids[:end] for ids in expected]
    run = run_of(memory, tmp_path, "p.jsonl", 'student.model="model"')
    with opened_model(run, policy_of_round(run, 0)) as exported:
        again = load(Path(exported.location))
    assert [again(text)["input_ids"] for text in TEXTS] == expected
    assert tokenizer_digest(again) == tokenizer_digest(first)
    for tokenizer in (first, again):
        for text, ids in zip(TEXTS, expected, strict=True):
            written = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert written == backend(kind).decode(ids, skip_special_tokens=False)
            whole = tokenizer.decode(ids, skip_special_tokens=True)
            assert whole == text or not (KINDS[kind].whole and "<" not in text), whole
