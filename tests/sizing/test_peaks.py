"""Estimates of memory against measured peaks of a CPU: a tiny model, one of 26 million weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.source import ModelSource
from pipeline.sizing.learning import Lengths, learner_parts
from pipeline.sizing.parts import MIB, total
from pipeline.sizing.serving import hf_parts
from pipeline.sizing.shape import shape_of
from tests.support import memorypeaks as peaks
from tests.support.repository import REPOSITORY

FACTOR, SLACK = 1.6, 48 * MIB
"""How far an estimate may be from what was measured, and what allocators and tables take."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, int]]]:
    """Return the folder of the models, and their peaks."""
    folder = tmp_path_factory.mktemp("peaks")
    command = [sys.executable, "-m", "tests.support.memorypeaks", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("name", peaks.MODELS)
def test_an_estimate_is_near_the_measured_peak(
    measured: tuple[Path, dict[str, dict[str, int]]], name: str
) -> None:
    folder, found = measured
    shape = shape_of(ModelSource(str(folder / name), None, False))
    lengths = Lengths(peaks.PROMPT, peaks.RESPONSE, peaks.ROWS[name])
    section = peaks.engine_section()
    expected = {
        "train": learner_parts(shape, peaks.train_section(name), lengths, on_gpu=False)[0],
        **{
            stage: hf_parts(shape, section, lengths, dtype="float32", samples=samples, on_gpu=False)
            for stage, samples in (("rollout", True), ("score", False))
        },
    }
    for stage, parts in expected.items():
        estimate, real = total(parts), found[name][stage]
        words = f"{name} {stage}: estimated {estimate / MIB:.0f} MiB, measured {real / MIB:.0f}"
        print(words, {what: size // MIB for what, size in parts.items()})
        assert estimate <= FACTOR * real + SLACK, words
        assert real <= FACTOR * estimate + SLACK, words
