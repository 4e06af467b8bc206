"""Evaluation of teachers: on the student's ids, where those mean the same text to them."""

import json
from pathlib import Path

import pytest

from tests.support.runs import Cli
from tests.support.tiny import write_run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a run whose teacher pads with another token than its student."""
    path = write_run(tmp_path, changes={"eval.teachers": True})
    settings = tmp_path / "main" / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps(known | {"pad_token": known["eos_token"]}))
    return path


def test_another_tokenizer_of_a_teacher_is_named_and_not_the_prompts(
    config: Path, cli: Cli
) -> None:
    outcome = cli("run", "-c", config)
    assert outcome.code == 3
    assert "tokenizers of the student and of teacher 'main' differ" in outcome.stderr
    assert "changed since" not in outcome.stderr


def test_a_teacher_that_shares_the_vocabulary_alone_is_evaluated(config: Path, cli: Cli) -> None:
    shared = ("--set", "teachers.main.tokenizer_check=vocabulary")
    cli.ok("eval", "-c", config, "--baseline", *shared)
    assert len(list(config.parent.glob("store/**/baseline/**/manifest.json"))) == 2
