"""An engine is held against transformers once: a record of a run stands for that very engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines import reference
from pipeline.engines.engine import Engine
from pipeline.engines.ledger import RunLedger
from pipeline.engines.opening import open_engine
from pipeline.engines.reference import held_engine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.runs.run import pin_run
from pipeline.scores.scores import Scores
from pipeline.store.storage import Storage
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.keys import admission_key
from schemas.records.runs import AdmissionRecord
from tests.support.promptfiles import run_of
from tests.support.tiny import make_model


class _Off:
    """An engine that is some nats away from its model."""

    name = "vllm"

    def __init__(self, engine: Engine, by: float) -> None:
        self._engine, self._by = engine, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, *rows: Any, **given: Any) -> Scores:
        found: Scores = self._engine.score(*rows, **given)
        found.token_logprob[:] -= np.float32(self._by)
        return found


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a start of a model in a process that has held none."""
    monkeypatch.setattr(reference, "_HELD", set())
    source = ModelSource(str(make_model(tmp_path / "model")), None, False)
    return Start(source, EngineSection(), dtype="float32", use="score", max_tokens=60)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Return a store."""
    return Storage(str(tmp_path / "store"))


def held(start: Start, *, by: float = 0.0, version: str = "vllm-1") -> None:
    """Hold an engine, in a process of which nothing is left afterwards."""
    reference._HELD.clear()
    plain = replace(start, section=EngineSection(device="cpu"))
    held_engine(start, lambda: _Off(open_engine(plain, print), by), version=version, note=print)


def test_what_a_record_says_was_held_is_not_held_again(
    start: Start, storage: Storage, tmp_path: Path
) -> None:
    run = run_of(storage, tmp_path, "prompts.jsonl")
    pin_run(run)
    with pytest.raises(ConfigError, match="away from a float32 forward"):
        held(replace(start, ledger=RunLedger(run)), by=0.1)
    assert not list(storage.names("runs/first/admission/engine"))
    held(replace(start, ledger=RunLedger(run)))
    (name,) = storage.names(f"runs/{run.name}/admission/engine")
    key = admission_key(run.name, "engine", name.removesuffix(".json"))
    record = AdmissionRecord.from_bytes(storage.get(key) or b"", where=key)
    assert record.misplaced(key) is None and record.figures["max"] < 1e-4

    again = replace(start, ledger=RunLedger(run))
    held(again, by=0.1)  # nobody looks
    others: list[tuple[Start, str]] = [
        (again, "vllm-2"),
        (replace(again, dtype="bfloat16"), "vllm-1"),
    ]
    for other, version in others:
        with pytest.raises(ConfigError, match="away from a float32 forward"):
            held(other, by=0.5, version=version)
    make_model(Path(start.source.location), seed=9)
    with pytest.raises(ConfigError, match="away from a float32 forward"):
        held(again, by=0.1)


def test_a_student_that_has_a_probe_shares_what_was_held_and_others_do_not(
    start: Start, storage: Storage, tmp_path: Path
) -> None:
    run = run_of(storage, tmp_path, "prompts.jsonl")
    pin_run(run)
    student = replace(start, use="sample", ledger=RunLedger(run))
    held(student)
    make_model(Path(start.source.location), seed=9)
    held(replace(student, probed=True), by=0.1)
    with pytest.raises(ConfigError, match="away from a float32 forward"):
        held(student, by=0.1)


def test_nothing_is_written_before_a_run_is_pinned(
    start: Start, storage: Storage, tmp_path: Path
) -> None:
    run = run_of(storage, tmp_path, "prompts.jsonl")
    ledger = RunLedger(run)
    held(replace(start, ledger=ledger))
    assert not list(storage.names(f"runs/{run.name}"))
    pin_run(run)
    ledger.write()
    assert len(list(storage.names(f"runs/{run.name}/admission/engine"))) == 1
    held(replace(start, ledger=RunLedger(run)), by=0.1)
