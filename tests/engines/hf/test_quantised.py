"""Quantised teachers on the `hf` engine score as their weights, dequantised by hand, do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines.opening import engine_version
from pipeline.models.source import ModelSource
from schemas.scoresignal import Signal
from tests.support.golden import Tiny, V, assert_same_scores, reference_scores, rows
from tests.support.quantised import KINDS, PACKED, quantise
from tests.support.tiny import make_model
from tests.support.zoomodels import make_random

ROUNDED = 0.1
"""Nats in 16 bits, on average."""


def plainly(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tiny(folder: Path) -> Path:
    return make_model(folder, arch="llama", tied=False, hidden=64)


def assert_dequantised(packed: Path, reference: Any, model: Path) -> None:
    """Hold an engine in float32 against a model of plain weights, and that against the original."""
    prompts, responses = rows(3)
    made = Tiny(packed, reference)
    found = made.engine().score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(made, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected)
    whole = Tiny(model, plainly(model))
    before = reference_scores(whole, prompts, responses, k=4, vocab_size=V)
    assert np.abs(before.token_logprob - expected.token_logprob).max() > 0.01  # it is quantised


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_dequantised_weights(tmp_path: Path, kind: str) -> None:
    model = tiny(tmp_path / "model")
    packed, plain = quantise(model, tmp_path, kind)
    assert_dequantised(packed, plainly(plain), model)


def test_experts_in_fp4_score_as_their_dequantised_weights(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4}
    model = make_random(tmp_path / "model", "GptOssConfig", "GptOssForCausalLM", sizes)
    packed, plain = quantise(model, tmp_path, "mxfp4")
    assert_dequantised(packed, plainly(plain), model)


def test_weights_are_unpacked_on_every_device_and_the_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    asked = list[bool]()
    plain: Any = FineGrainedFP8HfQuantizer.validate_environment

    def watched(self: Any, *args: Any, **given: Any) -> None:
        asked.append(self.quantization_config.dequantize)
        plain(self, *args, **given)

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", watched)
    packed, dequantised = quantise(tiny(tmp_path / "model"), tmp_path, "fp8-blocks")
    engine = Tiny(packed, None).engine()
    assert asked == [True], "where there is a GPU, transformers would take kernels otherwise"
    assert engine.version == f"{engine_version('hf')}+unpacked"
    older, _ = quantise(tmp_path / "model", tmp_path / "older", "fp8")
    for folder in (dequantised, older):
        source = ModelSource(str(folder), None, False)
        assert engine_version("hf", source) == engine_version("hf")


def saved(model: Path, folder: Path, settings: Any) -> Path:
    """Quantise a model by transformers and return where it is."""
    made = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, quantization_config=settings
    )
    made.save_pretrained(folder)
    for path in model.glob("*token*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_scores_as_its_dequantised_weights(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes", reason="opd does not install bitsandbytes")
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    model = tiny(tmp_path / "model")
    packed = saved(model, tmp_path / "packed", make(**{f"load_in_{bits}bit": True}))
    assert_dequantised(packed, plainly(packed).dequantize(dtype=torch.float32), model)


def test_torchao_scores_as_its_dequantised_weights(tmp_path: Path) -> None:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="opd does not install torchao"
    )
    from transformers import TorchAoConfig

    make: Any = TorchAoConfig
    model = tiny(tmp_path / "model")
    kind = quantization.Int8WeightOnlyConfig(version=2)
    packed = saved(model, tmp_path / "packed", make(kind))
    assert_dequantised(packed, plainly(packed), model)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # gptqmodel's
@pytest.mark.parametrize("kind", PACKED)
def test_kernels_in_16_bits_score_near_the_dequantised_weights(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gptqmodel", reason="opd does not install gptqmodel")
    packed, plain = quantise(tiny(tmp_path / "model"), tmp_path, kind)
    prompts, responses = rows(3)
    made = Tiny(packed, plainly(plain))
    engine = made.engine(dtype="bfloat16")
    found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(made, prompts, responses, k=4, vocab_size=V)
    assert np.abs(found.token_logprob - expected.token_logprob).mean() < ROUNDED
