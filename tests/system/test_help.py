"""What `--help` and shell completion say: whole sentences, in groups, without a heavy library."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cli.main import COMMANDS, app
from tests.support.repository import REPOSITORY

ROOT: Any = typer.main.get_command(app)
MAX_SENTENCE = 76
"""Longest first sentence: completion breaks a longer one, and fish offers its rest as a choice."""


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, groups included."""
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name)
        yield from commands(inner, (*path, name))


def find(path: tuple[str, ...]) -> Any:
    command = ROOT
    for name in path:
        command = command.commands[name]
    return command


def help_of(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="opd", env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.stdout


def complete(shell: str, line: str) -> subprocess.CompletedProcess[str]:
    """Return what a shell gets when it asks opd to complete a line."""
    variables = {
        "_OPD_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    return call(variables=variables)


def call(*words: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cli.main", *words],
        env={**os.environ, **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- help ---


def test_the_help_lists_every_command_under_its_heading() -> None:
    text = help_of()
    for heading, names in COMMANDS.items():
        section = text.split(f"\n{heading}:\n")[1].split("\n\n")[0]
        assert re.findall(r"^  (\w+) ", section, re.MULTILINE) == list(names)
    assert {name for names in COMMANDS.values() for name in names} == set(ROOT.commands)


@pytest.mark.parametrize("path", [(), ("cache",), ("config",)], ids=" ".join)
def test_each_command_is_explained_by_a_whole_sentence(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert "..." not in text.replace("[ARGS]...", "")
    assert "…" not in text
    flat = " ".join(text.split())
    for name, command in find(path).commands.items():
        sentence = command.get_short_help_str()
        assert sentence.endswith(".")
        assert f"{name} {sentence}" in flat


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for parameter in find(path).params:
        assert parameter.opts[0] in text or parameter.param_type_name == "argument"


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_a_first_sentence_fits_on_a_line_of_completion(path: tuple[str, ...]) -> None:
    sentence = find(path).get_short_help_str()
    assert len(sentence) <= MAX_SENTENCE
    assert not re.search(r"\[[a-z]", sentence), "completion reads [word] as markup and drops it"


def test_options_for_schedulers_stand_apart_in_the_help_of_plan() -> None:
    general, rest = help_of("plan").split("\nWith --round, for schedulers:\n")
    for option in ("--workers", "--teacher", "--from-round", "--dry-run"):
        assert option in rest
        assert option not in general


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "offered", "others"),
    [
        ("opd ro", "rollout", "score"),
        ("opd cache ver", "verify", "merge"),
        ("opd plan --w", "--workers", "--teacher"),
    ],
)
def test_a_shell_completes_commands_and_options(
    shell: str, line: str, offered: str, others: str
) -> None:
    done = complete(shell, line)
    assert offered in done.stdout
    assert others not in done.stdout.replace(offered, "")
    loaded = {entry.rsplit("|", 1)[-1].strip() for entry in done.stderr.splitlines()}
    assert "typer" in loaded
    assert {"torch", "transformers", "vllm", "deepspeed"}.isdisjoint(loaded)


def test_fish_gets_one_line_for_each_command() -> None:
    lines = complete("fish", "opd ").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == list(ROOT.commands)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_calls_opd_back(shell: str) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # no shell is above a test
    script = call("--show-completion", shell, variables=named).stdout
    assert f"_OPD_COMPLETE=complete_{shell}" in script
