"""Write docs/licences.md: the licence of every package that the pinned files install.

Usage: python docs/make_licences.py [--check]

Names and versions come from requirements/, licences from the packages' own metadata in .venv and
.venv-airflow. With --check nothing is written, and the exit status is 1 where the file is out of
date.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TARGET = Path(__file__).with_name("licences.md")
FILES = {
    "core": "opd itself: command line, storage and cache tools",
    "report": "charts of `opd report`",
    "graders": "the graders `math` and `json_schema`",
    "train": "the learner and the engine `hf`",
    "vllm": "the engine `vllm`",
    "airflow": "the DAGs, in an environment of their own",
    "dev": "tests and checks; not needed to run opd",
}
"""Pinned file → what needs it."""

INTRODUCTION = """\
# Licences of what opd installs

<!-- Written by docs/make_licences.py from requirements/ and the packages' own metadata. -->

opd itself is under Apache-2.0. It ships none of the packages below: pip fetches them from your
index. The licence is the one that each package states itself; where it states none, look at its
project. `make audit` asks the public database for known vulnerabilities of the same pinned
versions; it needs the network.
"""


def render() -> str:
    """Return the text of the page."""
    known = dict(_licences())
    parts = [INTRODUCTION]
    for name, use in FILES.items():
        lines = [f"## `requirements/{name}.txt`: {use}", "", "| Package | Version | Licence |"]
        lines.append("|---|---|---|")
        pinned = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for package, version in re.findall(r"^([\w.-]+)==(\S+)", pinned, re.MULTILINE):
            licence = known.get(_plain(package), "")
            lines.append(f"| {package} | {version} | {licence or 'states none'} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _licences() -> Iterator[tuple[str, str]]:
    """Yield each installed package's name and licence, of both environments."""
    airflow = sorted((REPOSITORY / ".venv-airflow").glob("lib/python*/site-packages"))
    for path in ([str(place) for place in airflow], sys.path):
        for found in metadata.distributions(path=path):
            yield _plain(found.name), _licence(found)


def _licence(found: metadata.Distribution) -> str:
    """Return the SPDX expression of a package, or the names that older metadata give."""
    stated = found.metadata.get("License-Expression")
    if stated:
        return str(stated)
    classifiers = found.metadata.get_all("Classifier") or []
    names = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")]
    lines = str(found.metadata.get("License") or "").splitlines()
    return "; ".join(names) or (lines[0].strip()[:60] if lines else "")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    text, check = render(), parser.parse_args().check
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET} is out of date: run python docs/make_licences.py")


if __name__ == "__main__":
    main()
