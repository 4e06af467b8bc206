"""An engine of vLLM whose numbers are not those of transformers is not used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.start import Use
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.golden import Tiny
from tests.support.quantised import quantise
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run
from tests.support.vllmgolden import opened


@pytest.mark.parametrize("use", ["score", "sample"])
def test_an_architecture_that_vllm_computes_otherwise_is_refused(
    make: Callable[..., Tiny], use: Use
) -> None:
    model = make("gpt_neox", tied=False, hidden=128)
    with (
        pytest.raises(ConfigError, match="away from a float32 forward of transformers") as found,
        opened(model, use),
    ):
        pass
    assert str(model.folder) in str(found.value) and "engine to 'hf'" in str(found.value)


def test_weights_that_are_not_finite_are_refused_before_vllm_starts(
    make: Callable[..., Tiny], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make().folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{name} holds NaN"), opened(Tiny(folder, None), "score"):
        pass


def test_a_quantised_model_is_not_held_against_transformers_and_that_is_said(
    tmp_path: Path,
) -> None:
    model, notes = make_model(tmp_path / "model", arch="llama", tied=False), list[str]()
    packed, _ = quantise(model, tmp_path, "int4")
    with (
        pytest.raises(ConfigError, match="vLLM cannot run the model"),  # in float32, on a CPU
        opened(Tiny(packed, None), "score", note=notes.append),
    ):
        pass
    assert len(notes) == 1 and "its weights are quantised" in notes[0]


def test_a_student_that_vllm_computes_otherwise_pins_nothing(tmp_path: Path, cli: Cli) -> None:
    make_model(tmp_path / "student", arch="gpt_neox", tied=False, hidden=128)
    config = write_run(tmp_path, changes={"rollout.engine": "vllm", "eval": None})
    for command in (["run"], ["rollout", "--round", "0"]):
        outcome = cli(command[0], "-c", config, *command[1:])
        assert outcome.code == 2 and "away from a float32 forward" in outcome.stderr
        assert not (tmp_path / "store" / "runs").exists()


def test_what_was_held_is_written_down_once_the_run_is_pinned(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, changes={"rollout.engine": "vllm", "eval": None})
    cli.ok("rollout", "-c", config, "--round", "0")
    storage = Storage(str(tmp_path / "store"))
    found = sorted(storage.names("runs/tiny/admission/engine"))
    assert len(found) >= 3  # the student as it came, its checkpoint, any of their settings
