"""The documentation: what it says about files, commands, keys and columns is there in the code."""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel

from cli.main import app
from schemas.config.file import parse_config
from schemas.config.run import RunConfig
from schemas.errors import INTERRUPTED_EXIT_CODE, OpdError
from schemas.rewardtable import REWARDS
from schemas.tables import PROMPTS, ROLLOUT, SCORES
from tests.support.repository import REPOSITORY

PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").glob("*.md"),
    ]
)
README = REPOSITORY / "README.md"
MAX_README = 150
PACKAGES = ("pipeline", "schemas", "cli")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))


def code_of(page: Path) -> list[str]:
    """Return the lines of code blocks and the spans of code of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = [line for _, body in FENCE.findall(text) for line in _logical_lines(body)]
    return blocks + SPAN.findall(FENCE.sub("", text))


def _logical_lines(body: str) -> list[str]:
    return body.replace("\\\n", " ").splitlines()


def commands_of(command: Any) -> dict[str, Any]:
    """Return the commands of a group, empty for a single command."""
    return dict(getattr(command, "commands", {}))


def options_of(command: Any) -> set[str]:
    names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return {name for name in names if name.startswith("-")} | {"--help"}


def calls_of(line: str) -> Iterator[list[str]]:
    """Yield the words after each `opd` that starts a command in a line of code."""
    for part in re.split(r"&&|\|\||[|;&]|\$\(", line.split(" #")[0]):
        words = part.strip().removeprefix("$ ").split()
        while words and re.fullmatch(r"[A-Z_]+=\S*|(\S*/)?(env|time|nohup|exec|srun)", words[0]):
            words = words[1:]
        if words and re.fullmatch(r"(\.venv/bin/)?opd", words[0]):
            try:
                yield shlex.split(part[part.index(words[0]) :])[1:]
            except ValueError:
                yield words[1:]


def config_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        inner = [
            kind
            for kind in (info.annotation, *get_args(info.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        for kind in inner:
            yield from config_keys(kind, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


# --- what is generated ---


GENERATED = (
    "alarms",
    "benchmarks",
    "commands",
    "configuration",
    "licences",
    "map",
    "metrics",
    "models",
    "objectives",
    "support",
)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a script of docs/, with its folder first, as when it is run."""
    folder = REPOSITORY / "docs"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [f"make_{name}" for name in GENERATED])
def test_what_is_written_by_a_script_is_up_to_date(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script(name, monkeypatch)
    assert module.TARGET.read_text(encoding="utf-8") == module.render(), (
        f"{module.TARGET.name} is out of date: run python docs/{name}.py"
    )


def test_licences_are_those_of_all_pinned_files_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = script("make_licences", monkeypatch)
    assert set(module.FILES) == {path.stem for path in (REPOSITORY / "requirements").glob("*.txt")}
    text = module.TARGET.read_text(encoding="utf-8")
    assert module.rendered({}, module.written_in(text)) == text, "a clone without environments"
    assert module.UNKNOWN not in text and module.UNKNOWN in module.rendered({}, {})
    other = {("numpy", "0.1"): "another version's"}
    assert "another version's" not in module.rendered(other, {})


def test_a_page_is_written_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, page = script("generated", monkeypatch).main, tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["make_page.py", "--check"])
    with pytest.raises(SystemExit, match=r"page.md is out of date: run python docs/make_page.py"):
        main(page, lambda: "new", "About it.")
    monkeypatch.setattr("sys.argv", ["make_page.py"])
    main(page, lambda: "new", "About it.")
    monkeypatch.setattr("sys.argv", ["make_page.py", "--check"])
    main(page, lambda: "new", "About it.")
    assert page.read_text() == "new"


@pytest.mark.parametrize("key", sorted(config_keys(RunConfig)))
def test_every_key_has_a_row_in_its_section(key: str) -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    section, _, name = key.rpartition(".")
    body = re.split(rf"^## .*`\[{section}(?:\.NAME)?\]`.*$", text, flags=re.MULTILINE)[1]
    assert f"| `{name}` |" in body.split("\n## ")[0]


# --- what is linked ---


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert path.is_relative_to(REPOSITORY), f"{page.name} links out of the repository: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors_of(path), f"{page.name} links to {target}"


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a forge gives to the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@every_page
def test_no_page_names_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:tmp|work|root|home|Users)/\S*", text)


def links_of(page: Path) -> set[Path]:
    """Return the files that a page links to."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = (target.partition("#")[0] for target in LINK.findall(text) if ":" not in target)
    return {(page.parent / target).resolve() for target in targets if target}


def reached_from(page: Path, links: Callable[[Path], set[Path]]) -> set[Path]:
    """Return a page and all that its links lead to, page by page."""
    found, new = {page}, {page}
    while new:
        new = {one for here in new if here.suffix == ".md" for one in links(here)} - found
        found |= new
    return found


def test_every_page_and_picture_is_reached_from_the_readme() -> None:
    pictures = [*(REPOSITORY / "docs").glob("*.svg"), *(REPOSITORY / "docs").glob("*.png")]
    assert pictures
    assert {*PAGES, *pictures} <= reached_from(REPOSITORY / "README.md", links_of)


def test_the_check_of_links_finds_an_orphan() -> None:
    first, second, orphan = Path("first.md"), Path("second.md"), Path("orphan.md")
    links = {first: {second}, second: {first}, orphan: {first}}
    assert reached_from(first, links.__getitem__) == {first, second}


def test_every_picture_has_a_text_for_those_who_cannot_see_it() -> None:
    for page in PAGES:
        for text in re.findall(r"!\[([^\]]*)\]\(", page.read_text(encoding="utf-8")):
            assert len(text.split()) >= 3, page


@every_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for span in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.fullmatch(r"(pipeline|schemas|cli|tests|docs|benchmarks)/[\w/]*(\.\w+)?", span):
            assert (REPOSITORY / span).exists(), f"{page.name} names {span}"


# --- the first page ---


def test_the_readme_is_read_in_one_sitting() -> None:
    assert README.read_text(encoding="utf-8").count("\n") <= MAX_README


def test_the_configuration_of_the_readme_is_a_whole_one() -> None:
    blocks = [body for language, body in FENCE.findall(README.read_text()) if language == "toml"]
    config = parse_config(blocks[0], where="README.md")
    assert len([line for line in blocks[0].splitlines() if line]) <= 20
    assert config.loss.kind == "forward_kl"
    assert config.teachers.keys() == {"main"}
    assert config.student.dtype == config.train.dtype == "bfloat16"


# --- what is typed ---


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    for line in code_of(page):
        for words in calls_of(line):
            check_call(words, line)


def check_call(words: list[str], line: str) -> None:
    command: Any = typer.main.get_command(app)
    while words and commands_of(command) and not words[0].startswith("-"):
        if not re.fullmatch(r"[a-z]+", words[0]):  # a placeholder, as in `opd …`
            return
        assert words[0] in commands_of(command), f"there is no command {words[0]!r}: {line}"
        command, words = commands_of(command)[words[0]], words[1:]
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= options_of(command), f"unknown option: {line}"


def test_the_check_of_commands_finds_a_wrong_one() -> None:
    assert list(calls_of("AWS_REGION=x opd run -c run.toml --rounds 2  # all")) == [
        ["run", "-c", "run.toml", "--rounds", "2"]
    ]
    with pytest.raises(AssertionError, match="no command 'rollot'"):
        check_call(["rollot", "-c", "run.toml"], "")
    with pytest.raises(AssertionError, match="unknown option"):
        check_call(["train", "--worker", "0/2"], "")


@every_page
def test_every_override_is_a_key(page: Path) -> None:
    known = set(config_keys(RunConfig))
    for line in code_of(page):
        for key in re.findall(r"--set[ =]'?([a-z_.]+\.[a-z_]+)=", line):
            assert as_schema_key(key) in {*known, "section.key"}, f"{key} in: {line}"


@every_page
def test_every_key_in_code_exists(page: Path) -> None:
    known = set(config_keys(RunConfig))
    sections = "|".join(RunConfig.model_fields)
    for line in code_of(page):
        match = re.match(rf"({sections})\.[a-zA-Z_.]+(?=$| =)", line)
        if match and not re.search(r"\.(json|toml|jsonl|parquet|md|py)$", match[0]):
            assert as_schema_key(match[0]) in known, f"no key {match[0]} in {page.name}: {line}"


def as_schema_key(key: str) -> str:
    """Return a key without the name of the teacher."""
    return re.sub(r"^teachers\.[A-Za-z0-9_-]+\.", "teachers.", key)


@every_page
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w.\-/]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(page):
        for target in re.findall(r"^make ([a-z]+)", line):
            assert target in targets, f"there is no target {target!r}: {line}"


# --- what is listed ---


def test_the_readme_names_every_room() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE))


def test_the_readme_has_every_exit_code() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    codes = {0, INTERRUPTED_EXIT_CODE, OpdError.exit_code}
    codes |= {kind.exit_code for kind in OpdError.__subclasses__()}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes


@pytest.mark.parametrize(
    "name", [f.name for table in (PROMPTS, ROLLOUT, REWARDS, SCORES) for f in table]
)
def test_the_page_of_data_names_every_column(name: str) -> None:
    assert f"| `{name}` |" in (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")


@every_page
def test_python_and_toml_blocks_are_well_formed(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(body, str(page), "exec")
        elif language == "toml":
            tomllib.loads(body)


@every_page
def test_python_blocks_import_what_is_there(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        nodes = ast.walk(ast.parse(body)) if language == "python" else iter(())
        for node in (one for one in nodes if isinstance(one, ast.ImportFrom)):
            module = node.module or ""
            if module.split(".")[0] in PACKAGES:
                path = REPOSITORY / f"{module.replace('.', '/')}.py"
                defined = {getattr(one, "name", "") for one in ast.parse(path.read_text()).body}
                assert {name.name for name in node.names} <= defined, f"{page.name}: {module}"
