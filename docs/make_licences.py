"""Write docs/licences.md: the licence of every package that the pinned files install.

Usage: python docs/make_licences.py [--check]

Names and versions come from requirements/, licences from the packages' own metadata in those of
the environments that there are. What none of them has keeps the licence that the page has of that
version, so that the page is the same wherever it is written. With --check nothing is written, and
the exit status is 1 where the file is out of date.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from generated import main

REPOSITORY = Path(__file__).parent.parent
TARGET = Path(__file__).with_name("licences.md")
FILES = {
    "core": "opd itself: command line, storage and cache tools",
    "report": "charts of `opd report`",
    "graders": "the graders `math` and `json_schema`",
    "train": "the learner and the engine `hf`",
    "vllm": "the engine `vllm`",
    "airflow": "the DAGs, in an environment of their own",
    "trackers": "the trackers of `[track]`, in an environment of their own",
    "docs": "the site of the documentation, in an environment of its own",
    "peers": "other systems that benchmarks compare opd with",
    "dev": "tests and checks; not needed to run opd",
}
"""Pinned file → what needs it."""

ENVIRONMENTS = (".venv", ".venv-airflow", ".venv-trackers", ".venv-docs", ".venv-peers")
"""Where packages are looked for, beside those of the Python that runs this."""

ROW = re.compile(r"^\| ([\w.-]+) \| (\S+) \| (.*) \|$", re.MULTILINE)

UNKNOWN = "not installed where this page was written"

Licences = Mapping[tuple[str, str], str]

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
    text = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    return rendered(dict(_licences()), written_in(text))


def written_in(text: str) -> Licences:
    """Return the licences that a page has, by name and version."""
    return {(_plain(name), version): words for name, version, words in ROW.findall(text)}


def rendered(known: Licences, written: Licences) -> str:
    """Return the page by what is installed, and what a page had before.

    Args:
        known: name and version of a package → its licence; an empty one where it states none.
        written: the same of the page.
    """
    parts = [INTRODUCTION]
    for name, use in FILES.items():
        lines = [f"## `requirements/{name}.txt`: {use}", "", "| Package | Version | Licence |"]
        lines.append("|---|---|---|")
        pinned = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for package, version in re.findall(r"^([\w.-]+)==(\S+)", pinned, re.MULTILINE):
            key = (_plain(package), version)
            licence = known.get(key, written.get(key, UNKNOWN))
            lines.append(f"| {package} | {version} | {licence or 'states none'} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _licences() -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the name, version and licence of each package that is installed somewhere."""
    places = [list(REPOSITORY.glob(f"{name}/lib/python*/site-packages")) for name in ENVIRONMENTS]
    for path in ([*map(str, place)] for place in (*places, sys.path)):
        for found in metadata.distributions(path=path):
            yield (_plain(found.name), found.version), _licence(found)


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


if __name__ == "__main__":
    main(TARGET, render, __doc__)
