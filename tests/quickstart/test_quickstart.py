"""The quickstart, as a newcomer runs it: real models, real stages, and the figures it promises."""

import shutil
from pathlib import Path

import pytest

from pipeline.store.storage import Storage
from tests.conftest import UseS3
from tests.support.runs import Cli, Quickstart
from tests.support.servers import SeaweedServer

ROUNDS = 14


@pytest.mark.slow
def test_the_student_reaches_95_percent_of_its_teacher(
    quickstart_process: Quickstart, cli: Cli
) -> None:
    outcome = quickstart_process.outcome
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["round"] == ROUNDS - 1
    status = cli.ok("status", "-c", quickstart_process.config)
    accuracies = [r["accuracy"] for r in status["rounds"]]
    assert len(accuracies) == ROUNDS
    assert status["teacher_accuracy"] >= 0.97
    assert status["initial_accuracy"] <= 0.55
    assert accuracies[-1] >= 0.95 * status["teacher_accuracy"]
    gaps = [r["reverse_kl"] for r in status["rounds"]]
    assert gaps[-1] < 0.2 * gaps[0]
    assert all(r["teacher_tokens"] > 0 for r in status["rounds"])


@pytest.mark.slow
def test_the_closing_table_shows_accuracy_divergence_cost_and_what_to_try_next(
    quickstart_process: Quickstart, cli: Cli
) -> None:
    assert quickstart_process.outcome.code == 0
    again = cli("quickstart", quickstart_process.folder)
    assert again.code == 0
    for words in ("accuracy", "reverse KL", "teacher tokens", "seconds", "opd run -c"):
        assert words in again.stdout
    assert "rollout  " not in again.stdout.split("round  rollout")[0]


@pytest.mark.slow
def test_another_loss_starts_from_the_scores_that_are_there(
    quickstart_process: Quickstart, cli: Cli
) -> None:
    assert quickstart_process.outcome.code == 0
    changed = ("--set", "run.name=jsd", "--set", "loss.kind=jsd", "--set", "eval.teachers=false")
    result = cli.ok("run", "-c", quickstart_process.config, "--rounds", "1", *changed)
    assert result["teacher_tokens"] == 0
    assert result["reused_rows"] == 1280


@pytest.mark.s3
@pytest.mark.slow
def test_the_quickstart_does_the_same_on_s3(
    quickstart_process: Quickstart,
    s3_server: SeaweedServer,
    use_s3: UseS3,
    tmp_path: Path,
    cli: Cli,
) -> None:
    assert quickstart_process.outcome.code == 0
    root = use_s3(s3_server.account)
    folder = tmp_path / "demo"
    folder.mkdir()
    for model in ("teacher", "student"):
        shutil.copytree(quickstart_process.folder / model, folder / model)
    shutil.copy(quickstart_process.folder / "prompts.jsonl", folder)
    result = cli.ok("quickstart", folder, "--root", root, "--rounds", "1")
    assert result["manifest"].startswith(root)
    first = "runs/addition/rounds/0000/rollout/manifest.json"
    local = Storage(str(quickstart_process.folder / "store"))
    assert Storage(root).get(first) == local.get(first)
