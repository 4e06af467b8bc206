"""Troubleshooting by message: each message on the page is one of the code, with its exit code."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

import schemas.errors
from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### `(.+)`\n\nExit code (\d+)\.", PAGE, re.MULTILINE)
SHORTEST = 10


def template_of(node: ast.AST) -> str:
    """Return a text of the code with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template_of, node.values))
    if isinstance(node, ast.BinOp):
        return template_of(node.left) + template_of(node.right)
    return "…"


@cache
def messages() -> list[tuple[str, int | None]]:
    """Return every text of the code, with the exit code where it is raised as it stands."""
    return [found for room in ("pipeline", "schemas", "cli") for found in _messages(room)]


def _messages(room: str) -> Iterator[tuple[str, int | None]]:
    for path in sorted((REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                kind = getattr(schemas.errors, node.func.id, None)
                if isinstance(kind, type) and issubclass(kind, schemas.errors.OpdError):
                    yield template_of(node.args[0]), kind.exit_code
            elif isinstance(node, ast.JoinedStr):
                yield template_of(node), None


def codes_of(stem: str) -> set[int | None]:
    """Return the exit codes of the messages that have a stem in them."""
    return {code for message, code in messages() if stem in message}


@pytest.mark.parametrize(("stem", "code"), ENTRIES, ids=[stem for stem, _ in ENTRIES])
def test_every_message_of_the_page_is_one_of_the_code(stem: str, code: str) -> None:
    assert len(stem.replace("…", "").strip()) >= SHORTEST
    found = codes_of(stem)
    assert found, f"no message of the code has {stem!r} in it"
    assert int(code) in found or found == {None}, f"{stem!r} ends with {found}"


def test_every_entry_of_the_page_is_a_message_with_an_exit_code() -> None:
    assert len(ENTRIES) == len(re.findall(r"^### ", PAGE, re.MULTILINE)) >= 20


def test_a_message_that_is_not_in_the_code_is_found_out() -> None:
    assert not codes_of("… is as nobody would say it")
    assert codes_of("… ignores create-only writes") >= {6}
