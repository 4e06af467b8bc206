"""What an engine's numbers depend on: whatever may change them is seen, and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.provenance import with_any_weights, with_weights
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection, ServerSection, VllmSection
from tests.support.tiny import make_adapter, make_model

SECTION = EngineSection(engine="vllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model."""
    return make_model(tmp_path_factory.mktemp("provenance") / "model")


def start_of(folder: Path, base: Path | None = None) -> Start:
    below = None if base is None else ModelSource(str(base), None, False)
    source = ModelSource(str(folder), None, False, below)
    return Start(source, SECTION, dtype="float32", use="score", max_tokens=60)


def seen(start: Start, version: str = "vllm-1") -> dict[str, Any]:
    return with_weights(start, version)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"use": "sample"},
        {"max_tokens": 61},
        {"reads_text": True},
        {"section": SECTION.model_copy(update={"engine": "server"})},
        {"section": SECTION.model_copy(update={"batch_tokens": 7})},
        {"section": SECTION.model_copy(update={"logit_chunk_mb": 7})},
        {"section": SECTION.model_copy(update={"vllm": VllmSection(tensor_parallel_size=2)})},
        {"section": SECTION.model_copy(update={"vllm": VllmSection(prefix_caching=True)})},
    ],
    ids=str,
)
def test_whatever_may_change_numbers_is_seen(changes: dict[str, Any], model: Path) -> None:
    start = start_of(model)
    assert seen(replace(start, **changes)) != seen(start)


@pytest.mark.parametrize(
    "changes",
    [
        {"section": SECTION.model_copy(update={"vllm": VllmSection(keep_between_stages=True)})},
        {"section": SECTION.model_copy(update={"server": ServerSection(retry_s=1.0)})},
        {"probed": True},
    ],
    ids=str,
)
def test_what_changes_none_is_not(changes: dict[str, Any], model: Path) -> None:
    start = start_of(model)
    assert seen(replace(start, **changes)) == seen(start)


def test_versions_kernels_and_devices_are_seen_and_a_key_is_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(model)
    before = seen(start)
    assert seen(start, "vllm-2") != before
    for name in ("VLLM_API_KEY", "VLLM_LOGGING_LEVEL", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")  # as an engine leaves it
    assert seen(start) == before
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "OTHER")
    assert seen(start) != before and "OTHER" not in json.dumps(seen(start))


def rewritten(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda folder: make_model(folder), (True, True)),
        (lambda folder: make_model(folder, seed=5), (False, True)),
        (lambda folder: rewritten(make_model(folder), rms_norm_eps=0.1), (False, False)),
        (lambda folder: rewritten(make_model(folder), _name_or_path="x"), (True, True)),
    ],
)
def test_other_weights_and_other_settings_are_told_apart(
    make: Callable[[Path], Any], same: tuple[bool, bool], model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "other")
    ours, theirs = start_of(model), start_of(tmp_path / "other")
    found = [see(ours, "1") == see(theirs, "1") for see in (with_weights, with_any_weights)]
    assert tuple(found) == same


def test_an_adapters_form_is_seen_beside_its_base(model: Path, tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", model)
    other, wide = (make_adapter(tmp_path / f"{r}", model, seed=1, r=r) for r in (6, 4))
    starts = [start_of(model), *(start_of(folder, model) for folder in (first, other, wide))]
    bare, mine, again, wider = (with_any_weights(start, "1") for start in starts)
    assert mine == again and bare != mine != wider
    assert seen(starts[1]) != seen(starts[2])


def test_a_known_identity_is_not_read_again(model: Path) -> None:
    start = start_of(model)
    assert seen(replace(start, identity={"weights": "x"})) != seen(start)
