"""Memory that is given back without a collection."""

import gc
import weakref
from pathlib import Path

from pipeline.engines.hf.engine import HfEngine
from pipeline.engines.memory import free_weights
from pipeline.engines.start import Start
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from tests.support.tiny import make_model


def test_the_weights_of_a_model_are_free_while_somebody_holds_it(tmp_path: Path) -> None:
    source = ModelSource(str(make_model(tmp_path / "model")), None, False)
    model = load_model(source, dtype="float32", device="cpu")
    held = model.get_output_embeddings().weight  # type: ignore[no-untyped-call] # transformers' gap
    free_weights(model)
    assert held.numel() == 0
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == 0


def test_a_closed_engine_leaves_nothing_behind_without_a_collection(tmp_path: Path) -> None:
    source = ModelSource(str(make_model(tmp_path / "model")), None, False)
    start = Start(source, EngineSection(device="cpu"), dtype="float32", use="score")
    engine = HfEngine(start, version="of a test")
    weight = weakref.ref(engine._head.weight_VH)
    gc.disable()
    try:
        engine.close()
        found = weight()
        assert found is None or found.numel() == 0
    finally:
        gc.enable()
