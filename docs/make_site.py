"""Build the documentation as a site in build/site, strictly, and check every link of it.

Usage: .venv-docs/bin/python docs/make_site.py

The pages are those that README.md leads to, with the files that they link to. The exit status is 1
where the generator warns of anything, a link of a built page leads nowhere, or a page would fetch
something from elsewhere.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "build"
PAGES, SITE = BUILD / "pages", BUILD / "site"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def collect() -> None:
    """Copy all that README.md leads to, each file at its own place; README.md is the first page."""
    shutil.rmtree(PAGES, ignore_errors=True)
    found, new = set[Path](), {REPOSITORY / "README.md"}
    while new:
        found |= new
        new = {file for page in new if page.suffix == ".md" for file in _linked(page)} - found
    for file in found:
        name = file.relative_to(REPOSITORY)
        target = PAGES / ("index.md" if name == Path("README.md") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            target.write_text(text.replace("](../README.md", "](../index.md"), encoding="utf-8")
        else:
            shutil.copyfile(file, target)


def _linked(page: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to."""
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if name := "" if ":" in target else target.partition("#")[0]:
            file = (page.parent / name).resolve()
            if file.is_file():  # one that is missing is told of as a link that leads nowhere
                yield file


class _Page(HTMLParser):
    """The anchors of a built page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, set[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of one element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links.add(given.get("href", ""))
        elif tag in ("img", "script", "iframe", "source"):
            self.loaded.add(given.get("src", ""))
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.add(given.get("href", ""))


def faults() -> list[str]:
    """Return what is wrong with the links of the built site, in words."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in SITE.rglob("*.html")}
    if not pages:
        return [f"there is no page in {SITE}"]
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start from the root of a server
            continue
        here = path.relative_to(SITE)
        found += [f"{here} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for url in page.links | page.loaded:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{here} leads to {url}, which is not there")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{here} leads to {url}, and that page has no such part")
    return sorted(found)


def main() -> None:
    """Build and check."""
    collect()
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copyfile(REPOSITORY / "docs" / "site.toml", BUILD / "site.toml")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    command += ["--config-file", str(BUILD / "site.toml")]
    built = subprocess.run(command, cwd=BUILD, text=True, capture_output=True)
    if built.returncode:
        words = re.sub(r"\x1b\[[\d;]*m", "", built.stdout + built.stderr[-500:])
        sys.exit(f"{words}\nthe site of the documentation cannot be built")
    if wrong := faults():
        sys.exit("\n".join([*wrong, f"{len(wrong)} links of the documentation are wrong"]))
    print(
        f"built {len(list(SITE.rglob('*.html')))} pages in {SITE}, and every link leads somewhere"
    )


if __name__ == "__main__":
    main()
