"""Faults of vLLM's process: a full memory, a model that it cannot run, a death."""

import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.engines.engine import Engine
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.start import Start
from pipeline.engines.vllm import host
from pipeline.engines.vllm.host import OWN_PROCESS
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal
from tests.support.golden import Models, Tiny, V, rows
from tests.support.vllmgolden import open_vllm, opened


def test_a_full_memory_halves_the_forward_pass_and_goes_on(
    make: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.vllm import work
    from pipeline.scores import signals

    model, (prompts, responses), notes = make(), rows(9), list[str]()
    original = signals.score_signals

    def scarce(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(logits) >= 32:  # a round's, not those of the rows on which an engine is held
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return original(logits, *args, **kwargs)

    monkeypatch.setattr(work, "score_signals", scarce)
    section = EngineSection(engine="vllm", batch_tokens=128)
    source = ModelSource(str(model.folder), None, False)

    start = Start(source, section, dtype="float32", use="score", max_tokens=60)
    lazy = LazyEngine(lambda: open_vllm(start), notes.append)
    with lazy as engine, pytest.raises(CapacityError, match="scoring"):
        engine.call(lambda e: e.score(prompts, responses, signal=Signal(4), vocab_size=V))
    assert len(notes) == 1 and "half" in notes[0]  # 128, 64: less is not tried
    monkeypatch.setattr(work, "score_signals", original)


def test_an_engine_that_does_not_start_again_says_why(
    make: Callable[..., Tiny], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make().folder, tmp_path / "model"))
    section = EngineSection(engine="vllm", batch_tokens=128)
    source = ModelSource(str(folder), None, False)
    start = Start(source, section, dtype="float32", use="score", max_tokens=60)

    def work(engine: Engine) -> None:
        shutil.rmtree(folder)
        raise CapacityError("memory ran out")

    with (
        pytest.raises(ConfigError, match=str(folder)),
        LazyEngine(lambda: open_vllm(start), print) as engine,
    ):
        engine.call(work)


def test_a_model_that_vllm_cannot_run_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, had_group = (
        Models(tmp_path_factory.mktemp)("qwen3", head_dim=8),
        torch.distributed.is_initialized(),
    )
    with pytest.raises(ConfigError, match=str(model.folder)), opened(model):
        pass
    assert torch.distributed.is_initialized() == had_group


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process")
def test_the_answer_of_a_process_that_died_is_not_waited_for(
    make: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN_PROCESS, "1")
    monkeypatch.setattr(host, "LOOK_S", 0.2)
    prompts, responses = rows(2)
    with opened(make()) as engine:
        (process,) = (p for p in psutil.Process().children() if p.name().startswith("VLLM"))
        process.suspend()  # so that it does not answer before it is killed
        killer = threading.Timer(1.0, process.kill)
        killer.start()
        with pytest.raises(CapacityError, match="ended on its own"):
            engine.score(prompts, responses, signal=Signal(2), vocab_size=V)
        killer.join()
