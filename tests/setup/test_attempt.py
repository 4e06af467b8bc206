"""`opd try`: every stage once in a store that is deleted, and what the whole run will cost."""

from pathlib import Path

import pytest

from cli.options import in_words
from cli.setup.attempt import _following
from pipeline.runs.configsource import load_config
from pipeline.setup.attempt import small_settings
from tests.support.runs import Cli
from tests.support.tiny import write_run


def test_every_stage_is_tried_and_the_store_of_the_run_stays_as_it_is(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    longer = {"run.rounds": 5, "gate.max_accuracy_drop": 0.01}
    config = write_run(tmp_path, changes=longer)
    page = tmp_path / "page.html"
    result = cli.ok("try", "-c", config, "--report", page)
    assert page.read_bytes().startswith(b"<!doctype html>")
    stages = [line["stage"] for line in result["stages"]]
    assert stages == ["eval", "eval", "rollout", "score", "train", "eval"]
    assert result["stages"][2]["rows"] <= 16
    assert result["exit_code"] == 0 and {one["state"] for one in result["findings"]} == {"ok"}
    cost, section = result["cost"], load_config(config).config.rollout
    assert cost["rounds"] == 5 and cost["basis"] == "the small round"
    assert cost["rows"] == 5 * section.prompts_per_round * section.samples_per_prompt
    assert 0 < cost["response_tokens"] <= cost["rows"] * section.max_new_tokens
    assert cost["teacher_tokens"] > cost["response_tokens"] and cost["cache_bytes"] > 0
    assert set(cost["seconds"]) == {"rollout", "score", "train", "eval"}
    root = Path(load_config(config).place.resolve(load_config(config).config.run.root))
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert list(tmp_path.glob("opd-*")) == [], "the store of the small round is gone"


def test_what_fails_is_told_by_the_doctor_too(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = cli("try", "-c", config, "--set", "rollout.max_new_tokens=500")
    assert outcome.code == 2 and "holds 128" in outcome.stderr
    outcome = cli("try", "-c", config, "--set", "prompts.train=nowhere.jsonl")
    assert outcome.code == 2 and "nowhere.jsonl" in outcome.stderr
    assert "FAILED prompts" in outcome.stdout and "Traceback" not in outcome.stderr


def test_what_is_next_names_the_page_and_repeats_what_was_set() -> None:
    given = in_words("my run.toml", ["loss.kind=jsd"])
    assert given == "-c 'my run.toml' --set loss.kind=jsd"
    lines = _following(Path(__file__), given, 0)
    assert __file__ in lines[1] and lines[2] == f"  opd run {given}"
    assert _following(Path("nowhere.html"), given, 0) == ["Next:", f"  opd run {given}"]


def test_a_small_round_is_never_larger_than_the_run(tmp_path: Path) -> None:
    config = write_run(tmp_path, changes={"rollout.prompts_per_round": 3})
    given = load_config(config).config
    tried = load_config(config, small_settings(given, str(tmp_path / "x"))).config
    assert tried.rollout.prompts_per_round == 3 and tried.run.rounds == 1
    assert tried.rollout.max_new_tokens <= given.rollout.max_new_tokens
    assert tried.train.sequences_per_step <= given.train.sequences_per_step
    assert tried.run.root == str(tmp_path / "x")
