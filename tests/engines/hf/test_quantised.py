"""Quantised teachers on the `hf` engine score as their weights, dequantised by hand, do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.scoresignal import Signal
from tests.support.golden import Tiny, V, assert_same_scores, reference_scores, rows
from tests.support.quantised import KINDS, quantise
from tests.support.tiny import make_model


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_dequantised_weights(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", arch="llama", tied=False, hidden=64)
    packed, plain = quantise(model, tmp_path, kind)
    prompts, responses = rows(3)
    reference, whole = (
        Tiny(packed, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        for folder in (plain, model)
    )
    found = reference.engine().score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(reference, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected)
    before = reference_scores(whole, prompts, responses, k=4, vocab_size=V)
    assert np.abs(before.token_logprob - expected.token_logprob).max() > 0.01  # it is quantised
