"""What vLLM writes into other libraries does not outlast its engines."""

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.vllm.marks import Marks
from pipeline.models.loading import load_model
from schemas.scoresignal import Signal
from tests.support.golden import PLAIN, Tiny, V, generate, log_softmax, reference_scores, rows
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run
from tests.support.vllmgolden import ATOL, opened

WRITER = """
def written(*args): return "vllm"
class Base: pass
"""
LIBRARY = """
class Root: pass
class Model(Root):
    def __init__(self): self.made = True
class Model2(Model): pass
def forward(): return "ours"
class Names(dict): pass
NAMES = {"eager": forward}
"""


@pytest.fixture
def writer() -> Any:
    """Return a module of vLLM that others' classes are written from."""
    module = types.ModuleType("vllm.written")
    exec(WRITER, vars(module))
    return module


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the name of a module of transformers that nobody has imported yet."""
    (tmp_path / "transformers_tiny.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "transformers_tiny"
    sys.modules.pop("transformers_tiny", None)


@pytest.mark.parametrize("early", [True, False], ids=["imported before", "imported meanwhile"])
def test_classes_functions_and_registers_are_what_they_were(
    writer: Any, library: str, early: bool
) -> None:
    marks = Marks()
    if early:
        __import__(library)
    marks.begin()
    module: Any = __import__(library)
    module.Model.__bases__ = (module.Root, writer.Base)
    module.Model.__init__, module.Model.added = writer.written, False
    forward, module.forward = module.forward, writer.written
    module.NAMES["vllm"] = writer.written
    module.NAMES["mine"] = module.Model2
    marks.end()
    assert module.Model().made and module.Model2().made
    assert module.Model.__bases__ == (module.Root,) and not hasattr(module.Model, "added")
    assert module.forward is forward and module.forward() == "ours"
    assert set(module.NAMES) == {"eager", "mine"}  # what others did meanwhile stays

    marks.begin()  # vLLM writes these once, when it is imported
    assert module.forward() == "vllm" and "vllm" in module.NAMES
    marks.end()
    assert module.forward() == "ours" and set(module.NAMES) == {"eager", "mine"}


def test_what_one_engine_needs_stays_while_another_ends(writer: Any, library: str) -> None:
    marks = Marks()
    marks.begin()
    module: Any = __import__(library)
    module.forward = writer.written
    marks.begin()
    marks.end()
    assert module.forward() == "vllm"
    marks.end()
    assert module.forward() == "ours"


@pytest.mark.parametrize("arch", ["olmo2", "phi", "starcoder2"])
def test_an_architecture_of_transformers_can_be_made_before_and_after_vllm_ran_it(
    make: Callable[..., Tiny], arch: str
) -> None:
    model, (prompts, responses) = make(arch, tied=False, hidden=128), rows(3)
    before = load_model(model.source, dtype="float32", device="cpu")
    bases = type(before.get_decoder()).__mro__  # type: ignore[no-untyped-call] # its gap
    with opened(model) as engine:
        samples = generate(engine, prompts, PLAIN, range(3))
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    np.testing.assert_allclose(found.token_logprob, expected.token_logprob, rtol=0, atol=ATOL)
    for prompt, sample in zip(prompts, samples, strict=True):
        logprobs_TV = log_softmax(model.logits(prompt, sample.ids))
        expected_T = logprobs_TV[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, expected_T, rtol=0, atol=ATOL)
    after = load_model(model.source, dtype="float32", device="cpu")
    assert type(after.get_decoder()).__mro__ == bases  # type: ignore[no-untyped-call] # its gap
    ids = torch.arange(1, 9)[None]
    assert torch.equal(before(ids).logits, after(ids).logits)


def test_a_run_of_such_an_architecture_samples_scores_and_learns_in_one_process(
    tmp_path: Path, cli: Cli
) -> None:
    for name in ("student", "main"):
        make_model(tmp_path / name, arch="olmo2", tied=False, hidden=128, seed=len(name))
    changes = {"rollout.engine": "vllm", "score.engine": "vllm", "eval": None}
    config = write_run(tmp_path, changes=changes)
    cli.ok("run", "-c", config)  # vLLM, the learner, vLLM again, the learner again
    assert len(list((tmp_path / "store").glob("runs/*/rounds/*/train/manifest.json"))) == 2
