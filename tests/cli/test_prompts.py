"""`opd prompts show` on a terminal and for programs: text of others stays text."""

import json
from pathlib import Path

import pytest

from tests.support.badcases import CONTROL
from tests.support.runs import Cli
from tests.support.tiny import write_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a run of chats."""
    folder = tmp_path_factory.mktemp("chats")
    path = write_run(folder, tokenizer="chat")
    chat = [{"role": "user", "content": "a \x1b[31m[bold]z[/bold]\nopd: forged é"}]
    lines = [{"prompt": "add"}, {"messages": chat, "x": "\u202e"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_prompt_is_printed_with_every_token_and_no_control_character(
    config: Path, cli: Cli
) -> None:
    outcome = cli("prompts", "show", "-c", config, "--row", "2")
    assert outcome.code == 0, outcome.stderr
    assert CONTROL.findall(outcome.stdout) == []
    assert "\nopd: forged" not in outcome.stdout and "[bold]" in outcome.stdout
    head, *_, last = outcome.stdout.rstrip("\n").split("\n")
    assert head.endswith("prompts.jsonl:2, of prompts.train")
    assert last == "note: not pinned yet: the first stage pins these ids"
    assert '"<|assistant|>"' in outcome.stdout and "special" in outcome.stdout
    assert not (config.parent / "store").exists()


def test_programs_get_one_object(config: Path, cli: Cli) -> None:
    found = cli.ok("prompts", "show", "-c", config)
    assert found["record"] == {"prompt": "add"} and found["number"] == 1 and not found["pinned"]
    assert "".join(token["text"] for token in found["tokens"]) == found["text"] == "add"
    held_out = cli.ok("prompts", "show", "-c", config, "--eval")
    assert held_out["split"] == "eval" and held_out["place"].endswith("held-out.jsonl:1")


def test_a_row_that_is_not_there_is_a_mistake_of_the_user(config: Path, cli: Cli) -> None:
    outcome = cli("prompts", "show", "-c", config, "--row", "7", "--json")
    assert outcome.code == 2 and "has no line 7" in outcome.result["error"]
    assert cli("prompts", "show", "-c", config, "--row", "0").code == 2
