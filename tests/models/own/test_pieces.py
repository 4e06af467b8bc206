"""Tokenizers without a tokenizer.json read as their vocabulary says, or are refused."""

import io
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from schemas.errors import ConfigError
from tests.support.tinytokenizers import SPECIAL, bpe_backend, load
from tests.support.zootokenizers import SENTENCES


def library() -> Any:
    return pytest.importorskip("sentencepiece")


TEXTS = ("the sum of 12 is", "two  and\n\tthree", "naïve 🙂 中文", "x = {'a': [1]}")

LLAMA: dict[str, Any] = {
    **{"model_type": "bpe", "vocab_size": 380, "byte_fallback": True, "hard_vocab_limit": False},
    **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
}
GEMMA = LLAMA | {
    **{"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
}
T5 = {
    **{"model_type": "unigram", "vocab_size": 90, "hard_vocab_limit": False},
    **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"},
}


def folder_of(folder: Path, made: dict[str, Any], kind: str, **settings: Any) -> Path:
    """Write a folder with a sentencepiece model alone, and the settings of a model of a kind."""
    written = io.BytesIO()
    library().SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 9), model_writer=written, minloglevel=2, **made
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return described(folder, kind, **settings)


def described(folder: Path, kind: str, **settings: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


CLASS = {"tokenizer_class": "LlamaTokenizer"}

GOOD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "Llama 2": (LLAMA, "llama", CLASS | {"legacy": True}),
    "Vicuna": (LLAMA, "llama", CLASS | {"legacy": False, "add_bos_token": True}),
    "Mistral, of which a class without a first space is made": (LLAMA, "mistral", CLASS),
    "settings alone": (LLAMA, "internlm2", {}),
    "of another family": (LLAMA, "qwen2", {}),
    "no first space": (LLAMA | {"add_dummy_prefix": False}, "llama", CLASS),
    "Gemma": (GEMMA, "gemma", {"tokenizer_class": "GemmaTokenizer"}),
    "T5": (T5, "t5", {"tokenizer_class": "T5Tokenizer"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_sentencepiece_model_is_read_as_its_own_library_reads_it(
    name: str, tmp_path: Path
) -> None:
    made, kind, settings = GOOD[name]
    found = load(folder_of(tmp_path, made, kind, **settings))
    own = library().SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        ids = own.encode(text)
        assert found.encode(text, add_special_tokens=False) == ids
        if own.unk_id() not in ids:
            assert found.decode(ids, clean_up_tokenization_spaces=False) == own.decode(ids)


def test_settings_that_deny_the_first_space_are_followed(tmp_path: Path) -> None:
    given = CLASS | {"add_prefix_space": False}
    found = load(folder_of(tmp_path, LLAMA, "llama", **given))
    without = library().SentencePieceProcessor(
        model_file=str(folder_of(tmp_path, GEMMA, "llama") / "tokenizer.model")
    )
    assert found.tokenize("12 is") == without.encode("12 is", out_type=str)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"model_type": "unigram"}, "is not what tokenizer.model says"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"says: 'a line\\nand two.* expected .* from id"),
        ({"remove_extra_whitespaces": True}, "says: 'one behind '"),
    ],
)
def test_what_a_class_leaves_out_of_a_sentencepiece_model_is_told(
    made: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(folder_of(tmp_path, LLAMA | made, "llama", **CLASS))
    assert "give the folder the model's tokenizer.json" in str(caught.value)


def test_a_table_of_ranks_is_refused_for_it_does_not_cut_texts_into_words(tmp_path: Path) -> None:
    ranks = "".join(f"{text} {rank}\n" for rank, text in enumerate(("IQ==", "Ig==", "ISI=")))
    (tmp_path / "tokenizer.model").write_text(ranks)
    with pytest.raises(ConfigError, match=r"no sentencepiece model.*the model's tokenizer\.json"):
        load(described(tmp_path, "llama"))


def test_without_the_library_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = metadata.version

    def version(package: str) -> str:
        if package == "sentencepiece":
            raise metadata.PackageNotFoundError(package)
        return there(package)

    folder = folder_of(tmp_path, LLAMA, "llama", **CLASS)
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match="not installed: pip install sentencepiece, or give"):
        load(folder)


def byte_level(folder: Path, kind: str, **settings: Any) -> Path:
    bpe_backend().model.save(str(folder))
    return described(folder, kind, **settings)


def test_a_list_of_tokens_that_a_class_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not what vocab\.json says: the id of '<pad>' is None"):
        load(byte_level(tmp_path, "llama", **CLASS))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gpt_neox"])
def test_a_byte_level_list_of_tokens_is_read_by_the_class_of_its_model(
    kind: str, tmp_path: Path
) -> None:
    found = load(byte_level(tmp_path, kind))
    for text in TEXTS:
        ids = found.encode(text, add_special_tokens=False)
        assert found.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_byte_level_tokenizer_that_loses_text_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    class Losing(GPT2Tokenizer):
        """It drops what it has no word for."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            backend: Any = self._tokenizer
            backend.pre_tokenizer = pre_tokenizers.Whitespace()

    from pipeline.models.own.pieces import held_vocabulary

    make: Any = Losing
    made = make.from_pretrained(byte_level(tmp_path, "gpt2"))
    assert len(made.get_vocab()) > 256 > len(SPECIAL)
    with pytest.raises(ConfigError, match="loses text: 'the sum of 0 and 0 is' comes back as"):
        held_vocabulary(made, tmp_path)
