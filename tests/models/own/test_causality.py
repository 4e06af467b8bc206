"""A model that reads the tokens after the one it predicts is refused, whatever made it so."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import reference
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Note, Start
from pipeline.models.loading import load_model
from pipeline.models.own import causality
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from tests.support.modelfolders import edit_config
from tests.support.zoomodels import make_random

AHEAD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "settings of a decoder": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "an encoder": ("BertGenerationConfig", "BertGenerationDecoder", {}),
    "a setting of another model": ("LlamaConfig", "LlamaForCausalLM", {}),
}
CHANGES = {"use_bidirectional_attention": True, "is_causal": False}


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causality, "_CAUSAL", set())


def made(folder: Path, name: str) -> ModelSource:
    make_random(folder, *AHEAD[name])
    edit_config(folder, **CHANGES)
    return ModelSource(str(folder), None, False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", AHEAD)
def test_a_teacher_that_looks_ahead_is_refused(name: str, dtype: str, tmp_path: Path) -> None:
    source, section = made(tmp_path, name), EngineSection(device="cpu")
    with pytest.raises(ConfigError, match="it looks ahead.* correct is_causal, is_decoder"):
        open_engine(Start(source, section, dtype=dtype, use="score", max_tokens=60), print)


def test_so_is_one_on_vllm_before_that_starts(tmp_path: Path) -> None:
    def begin() -> Any:
        raise AssertionError("it was started")

    notes: Note = print
    section = EngineSection(engine="vllm", device="cpu")
    source = made(tmp_path, "a setting of another model")
    start = Start(source, section, dtype="float32", use="score", max_tokens=60)
    with pytest.raises(ConfigError, match="it looks ahead"):
        reference.held_engine(start, begin, version="vllm-0", note=notes)


def test_models_of_the_same_settings_are_tried_once(tmp_path: Path) -> None:
    forwards: list[int] = []
    for name in ("one", "two"):
        folder = make_random(tmp_path / name, "LlamaConfig", "LlamaForCausalLM", {})
        source = ModelSource(str(folder), None, False)
        model: Any = load_model(source, dtype="float32", device="cpu")
        model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
        causality.require_causality(model, source)
    assert len(forwards) == 2
