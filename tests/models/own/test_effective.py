"""What a model's own settings come to: end ids of three files, noise, caps, defaults."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.own.effective import effective_settings, end_token_ids, named_end_ids
from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import make_tokenizer
from schemas.errors import ConfigError
from tests.support import tiny

GENERATION, CONFIG = "generation_config.json", "config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("own") / "model")


def with_files(made: Path, folder: Path, **files: dict[str, Any] | None) -> ModelSource:
    """Return a model's settings with other keys, by the first word of a file's name."""
    settings = json.loads((made / CONFIG).read_text())
    settings = {n: v for n, v in settings.items() if n != "eos_token_id"} | (files["config"] or {})
    (folder / CONFIG).write_text(json.dumps(settings))
    if files.get("generation") is not None:
        (folder / GENERATION).write_text(json.dumps(files["generation"]))
    return ModelSource(str(folder), None, False)


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({}, None, (1,)),
        ({"eos_token_id": 7}, None, (1, 7)),
        ({"eos_token_id": 7}, {"eos_token_id": [9, 5]}, (1, 5, 7, 9)),
        ({"text_config": {"eos_token_id": [8]}}, {"eos_token_id": None}, (1, 8)),
        ({"eos_token_id": 7}, {"compile_config": {"backend": "inductor"}, "own": 1}, (1, 7)),
        ({"eos_token_id": -1}, {"eos_token_id": 1}, (1,)),
    ],
    ids=str,
)
def test_an_end_id_counts_whichever_file_names_it(
    made: Path,
    tmp_path: Path,
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    ids: tuple[int, ...],
) -> None:
    source = with_files(made, tmp_path, config=config, generation=generation)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(1)
    assert end_token_ids(source, tokenizer) == ids
    assert {i for found in named_end_ids(source, tokenizer).values() for i in found} == set(ids)


def test_no_end_id_at_all_is_an_error_that_says_what_to_set(made: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    source = with_files(made, tmp_path, config={})
    with pytest.raises(ConfigError, match="rollout.stop_token_ids"):
        end_token_ids(source, tokenizer)


def test_what_counts_what_is_off_and_what_is_ignored_is_told(made: Path, tmp_path: Path) -> None:
    given = {
        **{"attention_dropout": 0.1, "resid_pdrop": 0.0, "router_jitter_noise": 0.01},
        **{"final_logit_softcapping": 30.0, "max_position_embeddings": 77, "eos_token_id": 3},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
    }
    defaults = {"temperature": 0.6, "repetition_penalty": 1.1, "do_sample": True}
    source = with_files(made, tmp_path, config=given, generation=defaults)
    found = effective_settings(source, make_tokenizer())
    assert found.noise == {"attention_dropout": 0.1, "router_jitter_noise": 0.01}
    assert found.caps == {"final_logit_softcapping": 30.0}
    assert found.ignored == {"temperature": 0.6, "repetition_penalty": 1.1}
    assert (found.positions, found.rope) == (77, "yarn")
    for words in ("3 (config.json)", "attention_dropout 0.1", "temperature 0.6", "rope yarn"):
        assert words in found.words()
