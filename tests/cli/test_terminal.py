"""All that is printed goes through one door, and no text of others gets past it."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli.progress import BarProgress
from cli.terminal import as_json, cell, fail, say, say_table, warn_json
from tests.support.badcases import CONTROL
from tests.support.minimal import TEXT
from tests.support.repository import REPOSITORY
from tests.support.runs import Cli

DOOR = "terminal.py"
NASTY = "a[/b]c[red]\x1b[31m\x9b\a\u202e\nopd: done\r\udcff"
WAYS_OUT = ("print", "echo", "secho", "print_exc", "print_exception", "write", "writelines")


def ways_out(path: Path) -> list[str]:
    """Return the calls of a module that print or write by themselves."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
        owner = ast.unparse(node.func).rpartition(".")[0]
        drawn = name == "print" and owner == "self._console"  # a `cell`, above a bar
        fixed = owner == "os"  # words of our own inside a handler, or what came by the door
        if name in WAYS_OUT and not drawn and not fixed or name == "Console":
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node.func)}")
    return found


def test_nothing_else_in_the_command_line_prints() -> None:
    modules = [p for p in (REPOSITORY / "cli").rglob("*.py") if p.name != DOOR]
    assert [call for path in modules for call in ways_out(path)] == []
    assert ways_out(REPOSITORY / "cli" / DOOR) != []


@pytest.mark.parametrize("what", ["say", "fail", "table", "json", "bar"])
def test_no_text_of_others_moves_the_cursor_or_forges_a_line(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    if what == "say":
        say(NASTY)
    elif what == "fail":
        fail(NASTY)
    elif what == "table":
        say_table((NASTY, "x"), [[NASTY, cell(NASTY, "yellow")]], width=300)
    elif what == "json":
        warn_json({NASTY: [NASTY]})
    else:
        BarProgress(Console(file=stream, width=300)).note(NASTY)
    printed = capsys.readouterr()
    told = printed.out + printed.err + stream.getvalue()
    told.encode()
    assert CONTROL.findall(told) == []
    assert "a[/b]c[red]" in told
    assert not any(line.startswith("opd: done") for line in told.splitlines())


def test_json_has_no_password_of_a_url() -> None:
    told = as_json({"s3://k:hunter2@b": ["s3://k:hunter2@b/x", {"a": ("http://h?sig=hunter2",)}]})
    assert "hunter2" not in told
    assert json.loads(told) == {"s3://…@b": ["s3://…@b/x", {"a": ["http://h?…"]}]}


def test_a_terminal_that_knows_ascii_only_gets_escapes() -> None:
    code = (
        "from cli.terminal import prepare_streams, say, warn\n"
        r"prepare_streams(); say('\xb1 \u2013'); warn('\u2013')"
    )
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, cwd=REPOSITORY
    )
    assert (done.returncode, done.stdout) == (0, b"\\xb1 \\u2013\n")
    assert done.stderr.startswith(b"\\u2013")


def test_a_root_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run.toml").write_text(TEXT)
    root = tmp_path / "a[/b]c"
    told = cli("status", "-c", tmp_path / "run.toml", "--set", f"run.root={root}")
    assert (told.code, told.stdout.splitlines()[0]) == (0, f"run demo at {root}")
