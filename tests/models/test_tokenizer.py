"""Tokenizers: loaded, or refused in plain words."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import Qwen3Config

from pipeline.models import tokenizer as tk
from pipeline.models.source import ModelSource
from schemas.errors import ConfigError
from tests.support.repository import REPOSITORY
from tests.support.tinytokenizers import Fast, char_tokenizer, load


def load_error(location: str | Path, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(location, **kwargs)
    assert str(location) in str(caught.value)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


def test_importing_the_module_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pipeline.models.tokenizer, pipeline.prompts.pinning\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_vocabulary_size_counts_gaps_between_ids() -> None:
    assert tk.vocabulary_size(char_tokenizer("abc")) == 7
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    assert tk.vocabulary_size(Fast(tokenizer_object=backend)) == 10


def test_a_tokenizer_is_read_once_for_all_folders_that_have_its_files_and_anew_for_others(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "0000", tmp_path / "0001"
    for folder in (first, second):
        char_tokenizer("abc").save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(folder.name.encode())
        (folder / "manifest.json").write_text(f'"{folder.name}"')
    one, two = (tk.stored_tokenizer(ModelSource(str(f), None, False)) for f in (first, second))
    assert one is two
    char_tokenizer("abcd").save_pretrained(second)
    other = tk.stored_tokenizer(ModelSource(str(second), None, False))
    assert tk.vocabulary_size(other) == tk.vocabulary_size(one) + 1
    (second / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError):
        tk.model_tokenizer(ModelSource(str(second), None, False))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = load_error(tmp_path / "nowhere")
    assert "there is no such folder" in message and "correct the path" in message


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "there is no such folder" in load_error(tmp_path / "file")


def test_a_folder_with_a_model_but_no_tokenizer_is_refused_instead_of_an_empty_tokenizer(
    tmp_path: Path,
) -> None:
    Qwen3Config().save_pretrained(tmp_path)
    assert "expected one of tokenizer.json" in load_error(tmp_path)
    assert "its vocabulary is empty" in load_error(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("content", ["{torn", '{"version": "1.0"}', "[]", ""])
def test_a_damaged_tokenizer_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert "cannot be read" in load_error(tmp_path)


def test_a_hub_id_without_network_says_what_to_do() -> None:
    message = load_error("someone/model", revision="0" * 40)
    assert "nothing is in the local cache" in message and "give its folder" in message
    assert "hub id 'someone/model'" in load_error("someone/model")


def test_code_that_comes_with_a_tokenizer_is_not_run_unasked(tmp_path: Path) -> None:
    settings = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "vocab.txt").write_text("a\n")
    assert "trust_remote_code = true" in load_error(tmp_path)


@pytest.mark.parametrize("named", [{"AutoTokenizer": [None, "own.Own"]}, ["own.Own", None]])
def test_code_that_nobody_trusts_is_not_passed_over_for_the_file_beside_it(
    named: Any, tmp_path: Path
) -> None:
    char_tokenizer("abc").save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    model = ModelSource(str(tmp_path), None, False)
    assert tk.model_tokenizer(model).encode("ab")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": named}))
    with pytest.raises(ConfigError, match="own.Own.*Set trust_remote_code = true"):
        tk.model_tokenizer(model)
    assert tk.model_tokenizer(replace(model, stored=True)).encode("ab"), "as older runs began"
