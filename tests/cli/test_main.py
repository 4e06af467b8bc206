"""What a mistake looks like: one clear message and its exit code."""

from pathlib import Path

import pytest

from tests.conftest import UseS3
from tests.support.runs import Cli
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run

ON_GPU_7 = ("--set", "rollout.engine=hf", "--set", "rollout.device=cuda:7")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rollout", "--round", "0", "--set", "train.lerning_rate=1"], 2, "learning_rate"),
        (["rollout", "--round", "0", "--set", "student.model=nowhere"], 2, "nowhere"),
        (["score", "--round", "0"], 2, "opd rollout --round 0"),
        (["train", "--round", "0"], 2, "opd rollout --round 0"),
        (["rollout", "--round", "3"], 2, "opd train --round 2"),
        (["rollout", "--round", "0", "--worker", "2/2"], 2, "I/N"),
        (["eval"], 2, "--baseline"),
        (["rollout", "--round", "0", "--set", "run.root=ftp://x"], 2, "ftp"),
        (["rollout", "--round", "0", *ON_GPU_7], 2, "GPU"),
        (["rollout", "--round", "0", "--set", "rollout.engine=vlm"], 2, "'vllm'"),
        (["rollout", "--round", "0", "--set", "rollout.max_new_tokens=500"], 2, "holds 128"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_its_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, cli: Cli
) -> None:
    outcome = cli(arguments[0], "-c", write_run(tmp_path), *arguments[1:])
    assert outcome.code == code, outcome.stderr
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_an_unreachable_endpoint_is_named_with_exit_6(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    config = write_run(tmp_path, root="s3://bucket/x")
    outcome = cli("rollout", "-c", config, "--round", "0", "--set", "storage.retry_s=1")
    assert outcome.code == 6
    assert "http://127.0.0.1:9" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.s3
def test_wrong_credentials_and_a_read_only_key_are_told_with_exit_6(
    tmp_path: Path,
    cli: Cli,
    s3_server: SeaweedServer,
    use_s3: UseS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_run(tmp_path, root=use_s3(s3_server.account))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = cli("rollout", "-c", config, "--round", "0")
    assert wrong.code == 6
    assert "wrong" not in wrong.stderr.replace("wrong credentials", "")
    for key, value in s3_server.environ(readonly=True).items():
        monkeypatch.setenv(key, value)
    readonly = cli("rollout", "-c", config, "--round", "0")
    assert readonly.code == 6
    for outcome in (wrong, readonly):
        assert "Traceback" not in outcome.stderr


def test_validate_names_a_missing_prompt_file_and_accepts_a_whole_configuration(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    good = cli("config", "validate", "-c", config)
    assert good.code == 0
    assert good.result["valid"] is True
    typo = cli("config", "validate", "-c", config, "--set", "prompts.train=promts.jsonl")
    assert typo.code == 2
    assert "did you mean" in typo.stderr


def test_version_and_a_short_h_are_answered(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("opd ")
    assert "--config" in cli("run", "-h").stdout
