"""The tokenizer in use reads and writes as the folder's own tokenizer.json says, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from schemas.errors import ConfigError
from tests.support.tiny import chat_tokenizer
from tests.support.tinytokenizers import load

TEXTS = ("the sum of 0 and 0 is", "  two  spaces\n", "<|user|>naïve 🙂<eos>")


def saved(folder: Path, **settings: Any) -> Path:
    chat_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_a_class_that_builds_the_tokenizer_anew_does_not_change_it(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = load(saved(tmp_path, tokenizer_class=kind))
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = own.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False) == ids
        assert found.decode(ids) == own.decode(ids, skip_special_tokens=False)
    assert (found.eos_token, found.pad_token) == ("<eos>", "<pad>")
    assert found.chat_template == chat_tokenizer().chat_template


def test_it_stays_so_when_it_is_saved_beside_a_checkpoint(tmp_path: Path) -> None:
    found = load(saved(tmp_path / "given", tokenizer_class="LlamaTokenizerFast"))
    found.save_pretrained(tmp_path / "stored")
    again = load(tmp_path / "stored")
    assert [again.encode(text) for text in TEXTS] == [found.encode(text) for text in TEXTS]
    assert again.decode(again.encode(TEXTS[0])) == TEXTS[0]


def test_settings_that_read_otherwise_than_the_file_are_refused_with_the_text(
    tmp_path: Path,
) -> None:
    saved(tmp_path, split_special_tokens=True)
    with pytest.raises(ConfigError, match=r"not what its tokenizer\.json says: 'a <pad> b<pad>c'"):
        load(tmp_path)
