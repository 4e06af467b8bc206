"""What the scripts beside it have in common: a page that is written, or compared with `--check`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def main(target: Path, render: Callable[[], str], about: str | None) -> None:
    """Write a page; with --check write nothing, and end with 1 where it is out of date.

    Args:
        target: the page.
        render: returns its text.
        about: the script's own description.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    check, text = parser.parse_args().check, render()
    if not check:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        sys.exit(f"{target} is out of date: run python docs/{Path(sys.argv[0]).name}")
