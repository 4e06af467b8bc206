"""The documentation as a site: what `make docs` builds leaves nothing out and checks its links."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.fixture(name="site")
def make_site() -> Any:
    """Return docs/make_site.py."""
    spec = importlib.util.spec_from_file_location("make_site", DOCS / "make_site.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(nav: Any) -> list[str]:
    """Return the pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_every_page_has_its_place_in_the_navigation() -> None:
    nav = tomllib.loads((DOCS / "site.toml").read_text(encoding="utf-8"))["project"]["nav"]
    files = [*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *(REPOSITORY / "examples").glob("*.md")]
    names = [str(file.relative_to(REPOSITORY)) for file in files]
    assert sorted(pages_of(nav)) == sorted(
        "index.md" if name == "README.md" else name for name in names
    )


def test_the_check_runs_the_build_of_the_site() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "docs" in (re.search(r"^check: (.*?) ##", text, re.MULTILINE) or [""])[0].split()
    assert "docs/make_site.py" in text


def test_pages_are_collected_with_all_that_they_link_to(site: Any, tmp_path: Path) -> None:
    site.PAGES = tmp_path / "pages"
    site.collect()
    found = {str(p.relative_to(site.PAGES)) for p in site.PAGES.rglob("*") if p.is_file()}
    assert {"index.md", "docs/codecs.md", "docs/round.svg", "examples/cpu.toml"} <= found
    assert "README.md" not in found


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="#here">', None),
        ('<a href="https://example.org/x">', None),
        ('<a href="c.html">', "a.html leads to c.html, which is not there"),
        ('<a href="b.html#gone">', "and that page has no such part"),
        ('<img src="missing.png">', "a.html leads to missing.png"),
        ('<script src="https://example.org/x.js">', "a.html loads https://example.org/x.js"),
    ],
)
def test_a_wrong_link_of_the_built_site_is_found(
    site: Any, tmp_path: Path, body: str, fault: str | None
) -> None:
    site.SITE = tmp_path
    (tmp_path / "a.html").write_text(f'<h1 id="here">A</h1>{body}')
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1>')
    found = site.faults()
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_a_site_without_pages_is_no_site(site: Any, tmp_path: Path) -> None:
    site.SITE = tmp_path
    assert site.faults()
