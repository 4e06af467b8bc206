"""The gate before a run begins: a refusal leaves no trace, and a trial is not done twice."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.admission.trial import cut_rows
from pipeline.engines import proof, reach
from pipeline.engines.server import process
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.keys import admission_key
from schemas.records.runs import AdmissionRecord
from tests.support.forged import forged
from tests.support.repository import REPOSITORY
from tests.support.runs import Cli
from tests.support.tiny import MAX_PROMPT_TOKENS, make_model, write_run

LORA: dict[str, object] = {
    "train.lora.rank": 2,
    "train.lora.alpha": 4,
    "train.lora.target_modules": ["nope"],
}
SERVED: dict[str, object] = {
    "rollout.engine": "server",
    "rollout.server.urls": ["http://127.0.0.1:1"],
    "rollout.server.model": "x-{policy}",
    "rollout.server.api_key_env": "OPD_NO_SUCH_KEY",
}
MISTAKES: dict[str, tuple[dict[str, object], int, str]] = {
    "k": ({"score.k": 4000}, 2, "score.k = 4000"),
    "context": ({"rollout.max_new_tokens": 5000}, 2, "rollout.max_new_tokens"),
    "context of an eval": ({"eval.max_new_tokens": 5000}, 2, "eval.max_new_tokens"),
    "end ids": ({"rollout.stop_token_ids": [1, 99999]}, 2, "rollout.stop_token_ids has 99999"),
    "candidates": ({"rollout.candidates": 4000}, 2, "rollout.candidates = 4000"),
    "prompts": ({"prompts.max_tokens": 7}, 2, "prompts.on_error"),
    "held-out prompts": ({"prompts.eval": "no.jsonl"}, 2, "prompts.eval"),
    "grader": ({"eval.reward": "no.py:grade"}, 2, "no.py"),
    "adapter": (LORA, 2, "train.lora.target_modules has 'nope'"),
    "key of a server": (SERVED, 2, "OPD_NO_SUCH_KEY"),
    "tokenizer": ({"teachers.main.model": "chatty"}, 3, "the tokenizers of the student"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the models and prompts of a run, and a teacher of other ids."""
    write_run(tmp_path)
    make_model(tmp_path / "chatty", teacher=True, tokenizer="chat")
    return tmp_path


def stored(folder: Path) -> list[str]:
    root = folder / "store"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["run", "rollout --round 0", "eval --baseline", "doctor"])
def test_a_mistake_that_can_be_known_is_refused_before_anything_is_pinned(
    command: str, folder: Path, cli: Cli
) -> None:
    name, *options = command.split()
    for what, (changes, code, words) in MISTAKES.items():
        if what == "key of a server" and name == "eval":
            continue  # the rollout may run elsewhere
        outcome = cli(name, "-c", write_run(folder, changes=changes), *options)
        assert outcome.code == code, (what, outcome.stderr)
        assert words in outcome.stderr + outcome.stdout, what
        assert stored(folder) == [], what
    assert cli(name, "-c", write_run(folder), *options).code == 0


def unbounded(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})


def test_a_run_loads_its_teacher_before_a_rollout_is_paid_and_a_static_one_does_not(
    folder: Path, cli: Cli
) -> None:
    unbounded(folder / "main")
    outcome = cli("run", "-c", write_run(folder, changes={"eval": None}))
    assert outcome.code == 2 and "NaN or an infinity" in outcome.stderr
    assert stored(folder) == []
    static = {"eval": None, "run.admission": "static"}
    outcome = cli("run", "-c", write_run(folder, changes=static))
    assert outcome.code == 2 and "NaN or an infinity" in outcome.stderr
    assert any(key.startswith("rollouts/") for key in stored(folder))
    assert not any("/admission/" in key for key in stored(folder))


@pytest.mark.parametrize(
    ("stage", "commands"),
    [("rollout", ["rollout --round 0", "doctor --engines"]), ("eval", ["run"])],
)
def test_a_student_on_a_server_of_our_own_is_tried_before_anything_is_pinned(
    stage: str, commands: list[str], folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        process, "MODULE", "tests.support.fakeserver"
    )  # its numbers are of no model
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    config = write_run(folder, changes={f"{stage}.engine": "server"})
    for command in commands:
        name, *options = command.split()
        outcome = cli(name, "-c", config, *options)
        assert outcome.code == 2, command
        assert "away from a float32 forward" in outcome.stderr + outcome.stdout, command
        assert stored(folder) == [], command


def test_a_teacher_that_is_not_here_is_left_to_the_score_stage_in_words(
    folder: Path, cli: Cli
) -> None:
    config = write_run(folder)
    os.rename(folder / "main", folder / "elsewhere")
    outcome = cli("rollout", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0 and "`opd score` looks at it" in outcome.stderr
    missing = cli("score", "-c", config, "--round", "0")
    assert missing.code == 2 and not any(key.startswith("cache/") for key in stored(folder))
    assert cli("run", "-c", config).code == 2
    os.rename(folder / "elsewhere", folder / "main")
    assert cli("score", "-c", config, "--round", "0").code == 0


def admissions(folder: Path) -> list[str]:
    return [key for key in stored(folder) if "/admission/" in key]


def test_a_trial_is_kept_and_done_again_for_other_settings_alone(folder: Path, cli: Cli) -> None:
    config = write_run(folder, changes={"eval": None})
    cli.ok("run", "-c", config, "--rounds", "1")
    first = admissions(folder)
    assert [key.split("/")[3] for key in first] == ["student", "teacher"]
    for key in first:
        record = AdmissionRecord.from_bytes((folder / "store" / key).read_bytes(), where=key)
        assert record.misplaced(key) is None and record.figures["tokens"] > 0
        assert record.misplaced(key.replace("tiny", "other")) is not None
    cli.ok("run", "-c", config, "--rounds", "2")
    assert admissions(folder) == first
    tuned = ("--rounds", "3", "--set", "score.noise_tolerance=0.5")
    cli.ok("run", "-c", config, *tuned)
    assert len(admissions(folder)) == 3 and set(first) < set(admissions(folder))


@pytest.mark.parametrize("cheap", [True, False])
def test_a_trial_goes_up_to_the_longest_row_that_is_allowed_or_says_where_it_ends(
    cheap: bool, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cheap:
        monkeypatch.setattr(reach, "CPU_COST", 0)
    config = write_run(folder, changes={"eval": None, "rollout.max_new_tokens": 60})
    outcome = cli("run", "-c", config, "--rounds", "1")
    assert outcome.code == 0
    allowed = MAX_PROMPT_TOKENS + 60
    for key in admissions(folder):
        record = AdmissionRecord.from_bytes((folder / "store" / key).read_bytes(), where=key)
        assert record.figures["allowed_tokens"] == allowed
        assert record.figures["tried_tokens"] == (allowed if cheap else 40)
    words = f"rows above 40 tokens are not tried, and {allowed} are allowed"
    assert (f"teacher main: {words}" in outcome.stderr) is not cheap
    shown = cli("doctor", "-c", config).stdout
    assert shown.count(f"in trials, {words}") == (0 if cheap else 2)


def test_a_score_of_a_run_that_has_no_rollout_pins_nothing(folder: Path, cli: Cli) -> None:
    outcome = cli("score", "-c", write_run(folder), "--round", "0")
    assert outcome.code == 2 and "no finished rollout" in outcome.stderr
    assert stored(folder) == []


def test_a_record_of_something_else_is_refused() -> None:
    seen = {"engine": "hf"}
    good = AdmissionRecord(
        run="r", subject="student", seen=seen, fingerprint=fingerprint(seen), figures={}
    )
    assert good.misplaced(admission_key("r", "student", good.fingerprint)) is None
    words = json.loads(good.to_bytes()) | {"seen": {"engine": "vllm"}}
    with pytest.raises(DataError, match="what was seen has the fingerprint"):
        AdmissionRecord.from_bytes(forged(words), where="x")


@pytest.mark.parametrize("lengths", [[500, 600, 700, 800, 900], [3, 40, 5, 700, 9, 2]])
def test_rows_of_a_trial_are_short_and_of_mixed_lengths_however_long_the_prompts(
    lengths: list[int],
) -> None:
    rows = [np.arange(n, dtype=np.int32) for n in lengths]
    cut = [len(row) for row in cut_rows(rows, most=32)]
    assert len(cut) == len(set(cut)) == 4 and sum(cut) <= 80 and max(cut) == 32


def test_the_first_checkpoint_is_not_proved_again_where_the_student_was(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs, drawn = list[str](), proof.drawn_gap

    def counted(*given: Any) -> Any:
        proofs.append(given[0].name)
        return drawn(*given)

    monkeypatch.setattr(proof, "drawn_gap", counted)
    changes = {"run.rounds": 2, "run.keep_models": True}
    assert cli("run", "-c", write_run(folder, changes=changes)).code == 0
    assert proofs == ["hf", "hf"]  # the student, and the teacher that is graded
