"""Bad graders, patterns and references."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

GRADER = "def grade(response, reference, metadata):\n    return 1\n"


def linked_grader(folder: Path) -> None:
    """Put the grader elsewhere, with a link to it."""
    outside = folder.parent / "outside.py"
    outside.write_text(GRADER)
    (folder / "grader.py").symlink_to(outside)


def no_program(folder: Path) -> None:
    """Make a command of a file that may be executed and holds no program."""
    (folder / "grade.sh").write_bytes(bytes(range(256)))
    (folder / "grade.sh").chmod(0o755)
    path = folder / "run.toml"
    new = 'reward = "command"\ncommand = ["./grade.sh"]'
    path.write_text(path.read_text().replace('reward = "exact_match"', new))


def pipe_grader(folder: Path) -> None:
    """Make the grader a pipe that nobody writes to."""
    os.mkfifo(folder / "grader.py")


def deep_pattern(folder: Path) -> None:
    """Give the regex a pattern of ten thousand brackets."""
    path = folder / "run.toml"
    pattern = "(" * 10_000 + ")" * 10_000
    new = f'reward = "regex"\npattern = "{pattern}"'
    path.write_text(path.read_text().replace('reward = "exact_match"', new))


def no_references(folder: Path) -> None:
    """Take the references from the held-out prompts."""
    _change_references(folder, lambda row: row.pop("reference"))


def wordy_references(folder: Path) -> None:
    """Write the references without digits."""
    _change_references(folder, lambda row: row.update(reference="forty-two \u00bd \u0664"))


def huge_references(folder: Path) -> None:
    """Write references that no machine can hold as numbers."""
    _change_references(folder, lambda row: row.update(reference="1e999999999999999999999999"))


def _change_references(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "held-out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
