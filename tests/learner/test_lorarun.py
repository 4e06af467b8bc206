"""Runs that train an adapter: what is stored, going on, and mistakes of the configuration."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.probe import find_probe
from pipeline.models.loading import load_model
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.config.file import config_fingerprint, identity_of
from schemas.errors import IdentityError
from tests.support.minimal import message, parse
from tests.support.runs import Cli, snapshot
from tests.support.tiny import make_adapter, write_run

LORA: dict[str, object] = {
    "train.lora.rank": 4,
    "train.lora.alpha": 8,
    "train.lora.target_modules": ["q_proj", "down_proj"],
}
SMALL = {**LORA, "eval": None, "train.save_steps": 1, "train.lora.dropout": 0.1}
ROUND = "runs/tiny/rounds/0000"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Cli], Path]:
    """Return what gives the folder of a run of two rounds, made at its first use."""
    folder = tmp_path_factory.mktemp("lora-run")

    def make(cli: Cli) -> Path:
        if not (folder / "run.toml").exists():
            cli.ok("run", "-c", write_run(folder, changes=SMALL))
        return folder

    return make


def run_of(folder: Path, file: str = "run.toml") -> Run:
    return open_run(load_config(folder / file))


def stored(folder: Path, index: int) -> Path:
    return folder / f"store/runs/tiny/checkpoints/{index:04d}"


def test_every_checkpoint_is_an_adapter_of_the_students_weights(
    finished: Callable[[Cli], Path], cli: Cli
) -> None:
    folder = finished(cli)
    run, tensors = run_of(folder), []
    for index in range(3):
        manifest = run.checkpoint(index)
        assert manifest is not None and manifest.base is not None
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
            manifest.files
        )
        assert not any(name.startswith("model") for name in manifest.files)
        tensors.append(load_file(stored(folder, index) / "adapter_model.safetensors"))
    assert all(float(t.abs().max()) == 0.0 for n, t in tensors[0].items() if "lora_B" in n)
    for before, after in zip(tensors, tensors[1:], strict=False):
        assert before.keys() == after.keys()
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_opens_in_peft_and_names_its_base(
    finished: Callable[[Cli], Path], cli: Cli
) -> None:
    folder, ids = finished(cli), torch.tensor([[3, 9, 4, 14]])
    settings = json.loads((stored(folder, 2) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder / "student")
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(stored(folder, 2)).eval()
    run = run_of(folder)
    manifest = run.checkpoint(2)
    assert manifest is not None
    with opened_model(run, manifest) as source, torch.no_grad():
        ours, base = (
            load_model(one, dtype="float32", device="cpu")(input_ids=ids).logits
            for one in (source, source.whole)
        )
        expected = theirs(input_ids=ids).logits
    assert (ours - expected).abs().max() < 1e-5 < 1e-3 < (base - expected).abs().max()


def test_a_trained_checkpoint_has_a_probe_with_its_own_log_probabilities(
    finished: Callable[[Cli], Path], cli: Cli
) -> None:
    run, found = run_of(finished(cli)), []
    for index in range(3):
        manifest = run.checkpoint(index)
        assert manifest is not None
        with opened_model(run, manifest) as source, torch.no_grad():
            probe = find_probe(Path(source.location), manifest)
            found.append(probe)
            if probe is None:
                continue
            model: Any = load_model(source, dtype="float32", device="cpu")
            rows = zip(probe.prompt_ids, probe.response_ids, probe.logprobs, strict=True)
            for prompt, response, logprobs in rows:
                logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
                own = logits.log_softmax(-1)[len(prompt) - 1 : -1, :]
                expected = own.gather(-1, torch.tensor(response)[:, None])[:, 0]
                assert torch.allclose(torch.tensor(logprobs), expected, atol=1e-5)
    assert found[0] is None and found[1] is not None and found[1] != found[2]
    tokens = sum(map(len, found[1].prompt_ids)) + sum(map(len, found[1].response_ids))
    assert 0 < tokens <= 256


def test_a_round_that_lost_its_checkpoint_is_trained_to_the_same_one(
    finished: Callable[[Cli], Path], cli: Cli, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished(cli), tmp_path / "copy"))
    config = write_run(folder, changes=SMALL)
    before = snapshot(run_of(folder).storage, "runs/tiny")
    shutil.rmtree(stored(folder, 2))
    train = folder / "store/runs/tiny/rounds/0001/train"
    (train / "manifest.json").unlink()
    shutil.rmtree(train / "commits")
    result = cli.ok("train", "-c", config, "--round", "1")
    assert result["units"] == result["steps"] == 2  # from the state that round 0 ended with
    assert snapshot(run_of(folder).storage, "runs/tiny") == before
    assert cli.ok("run", "-c", config)["units"] == 0


def test_another_adapter_is_another_run(finished: Callable[[Cli], Path], cli: Cli) -> None:
    config = finished(cli) / "run.toml"
    outcome = cli("train", "-c", config, "--round", "0", "--set", "train.lora.rank=5", "--json")
    assert outcome.code == IdentityError.exit_code
    assert "train.lora.rank" in outcome.result["error"]


def test_a_layer_that_the_student_lacks_ends_the_rollout_with_those_that_it_has(
    tmp_path: Path, cli: Cli
) -> None:
    changes = {**SMALL, "train.lora.target_modules": ["c_attn"]}
    config = write_run(tmp_path, changes=changes)
    outcome = cli("rollout", "-c", config, "--round", "0", "--json")
    assert outcome.code == 2
    assert "'c_attn'" in outcome.result["error"] and "q_proj" in outcome.result["error"]
    assert not (tmp_path / "store/runs/tiny/checkpoints").exists()


def test_a_student_that_is_an_adapter_goes_on_or_is_merged(tmp_path: Path, cli: Cli) -> None:
    write_run(tmp_path, changes=SMALL)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["down_proj", "q_proj"]}
    adapter = make_adapter(tmp_path / "adapter", tmp_path / "student", **settings)
    student = {"student.model": "adapter", "run.rounds": 1, "eval": None}
    given = load_file(adapter / "adapter_model.safetensors")

    continued = write_run(tmp_path, changes={**SMALL, **student})
    cli.ok("run", "-c", continued)
    first, second = (
        load_file(stored(tmp_path, index) / "adapter_model.safetensors") for index in (0, 1)
    )
    assert first.keys() == given.keys() and all(torch.equal(first[n], given[n]) for n in given)
    assert all(not torch.equal(first[name], second[name]) for name in first)

    merged = write_run(tmp_path, changes={**student, "run.name": "merged"}, file="merged.toml")
    cli.ok("rollout", "-c", merged, "--round", "0")
    run = open_run(load_config(merged))
    manifest = run.checkpoint(0)
    assert manifest is not None and manifest.base is None
    kept = open_run(load_config(continued)).checkpoint(0)
    assert kept is not None and kept.origin == manifest.origin  # the same student
    assert rollouts(tmp_path, "tiny") == rollouts(tmp_path, "merged")

    other = write_run(tmp_path, changes={**student, **SMALL, "train.lora.rank": 8, "run.name": "o"})
    outcome = cli("rollout", "-c", other, "--round", "0", "--json")
    assert outcome.code == 2
    assert "rank is 4" in outcome.result["error"] and "gives 8" in outcome.result["error"]


def rollouts(folder: Path, run: str) -> list[list[int]]:
    """Return the responses of a run's first round."""
    import pyarrow.parquet as pq

    path = folder / f"store/runs/{run}/rounds/0000/rollout/manifest.json"
    keys = [unit["shard"]["key"] for unit in json.loads(path.read_text())["units"]]
    return [
        row
        for key in keys
        for row in pq.read_table(folder / "store" / key)["response_ids"].to_pylist()
    ]


def test_a_teacher_that_is_an_adapter_scores_as_the_model_it_makes(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path, changes={"eval": None, "run.rounds": 1})
    make_adapter(tmp_path / "adapter", tmp_path / "main")
    cli.ok("rollout", "-c", config, "--round", "0")
    plain = cli.ok("score", "-c", config, "--round", "0")
    changes = {"eval": None, "run.rounds": 1, "run.name": "other", "teachers.main.model": "adapter"}
    other = write_run(tmp_path, changes=changes, file="other.toml")
    cli.ok("rollout", "-c", other, "--round", "0")
    scored = cli.ok("score", "-c", other, "--round", "0")
    assert scored["reused_rows"] == 0 < plain["rows"] == scored["rows"]
    manifests = [run_of(tmp_path, toml.name).score(0, "main") for toml in (config, other)]
    one, two = (manifest for manifest in manifests if manifest is not None)
    assert one.scorer != two.scorer and one.reverse_kl != two.reverse_kl
    described = tmp_path / f"store/cache/{two.scorer}/scorer.json"
    assert set(json.loads(described.read_text())["model"]) == {"adapter", "base"}


# --- the configuration ---


def test_without_an_adapter_the_identity_of_a_run_is_what_it_was() -> None:
    assert not [key for key in identity_of(parse()) if "lora" in key or ".base" in key]
    lora = [f"{key}={json.dumps(value)}" for key, value in LORA.items()]
    identity = identity_of(parse(*lora))
    assert identity["train.lora.rank"] == 4 and identity["train.lora.dropout"] == 0.0
    prints = {config_fingerprint(parse(*lora, *more)) for more in MORE}
    assert len(prints) == len(MORE) and config_fingerprint(parse()) not in prints


MORE: tuple[list[str], ...] = (
    [],
    ["train.lora.alpha=9"],
    ["train.lora.dropout=0.1"],
    ["student.base=there"],
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train.lora.rank=4"], "train.lora.alpha: required"),
        (["train.lora.rank=0"], "train.lora.rank: "),
        (["train.lora.rnk=4"], "did you mean 'rank'?"),
        (["train.lora.dropout=1.0"], "train.lora.dropout: "),
        (["train.lora.target_modules=[]"], "train.lora.target_modules"),
    ],
)
def test_a_mistake_in_the_table_is_named(given: list[str], expected: str) -> None:
    assert expected in message(*given)


def test_an_adapter_is_exported_as_it_is_and_merged(
    finished: Callable[[Cli], Path], cli: Cli, tmp_path: Path
) -> None:
    folder, ids = finished(cli), torch.tensor([[3, 9, 4, 14]])
    command, found = ("export", "-c", folder / "run.toml"), {}
    for name, more in {"adapter": (), "merged": ("--merge",)}.items():
        cli.ok(*command, "--out", tmp_path / name, *more)
        kind: Any = AutoPeftModelForCausalLM if name == "adapter" else AutoModelForCausalLM
        with torch.inference_mode():
            model = kind.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
            found[name] = model(input_ids=ids).logits.log_softmax(-1)
    run = run_of(folder)
    manifest = run.checkpoint(2)
    assert manifest is not None
    with opened_model(run, manifest) as source, torch.inference_mode():
        expected = load_model(source, dtype="float32", device="cpu")(ids).logits.log_softmax(-1)
    for logprobs in found.values():
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    assert "model.safetensors" in {path.name for path in (tmp_path / "merged").iterdir()}
    weights = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    assert b"policy_version" not in weights
    assert load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    assert 'library_name: "peft"' in (tmp_path / "adapter/README.md").read_text()
