"""Write the map of modules in docs/architecture.md from their first lines.

Usage: python docs/make_map.py. A test says where the map is out of date.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from generated import main

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "architecture.md"
PACKAGES = ("schemas", "pipeline", "cli", "airflow_dags", "benchmarks")
BEGIN = "<!-- Written by docs/make_map.py from the first line of each module. -->\n"
END = "<!-- The map ends here. -->\n"


def render() -> str:
    """Return the whole page with the map as it should be."""
    text = TARGET.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + "\n".join(_map()) + "\n" + END + rest.split(END)[1]


def _map() -> Iterator[str]:
    """Yield the lines of the map: a heading and a table for each folder that has modules."""
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            modules = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
            if modules:
                yield from (f"### `{folder.relative_to(ROOT)}`", "")
                about = folder / "__init__.py"
                if about.exists():
                    yield from (_first_line(about), "")
                yield from ("| module | |", "|-|-|")
                yield from (f"| `{path.stem}` | {_first_line(path)} |" for path in modules)
                yield ""


def _first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if docstring is None:
        sys.exit(f"{path.relative_to(ROOT)} has no docstring")
    return docstring.splitlines()[0]


if __name__ == "__main__":
    main(TARGET, render, __doc__)
