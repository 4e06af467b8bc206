"""Scaling on paper: the page shows what the command prints."""

import re
from pathlib import Path

from tests.support.repository import REPOSITORY
from tests.support.runs import Cli


def test_the_page_of_scaling_shows_what_the_plan_prints(cli: Cli, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    config = REPOSITORY / "examples" / "qwen3-32b-to-8b.toml"
    root = f"run.root={tmp_path / 'store'}"
    printed = cli("plan", "-c", config, "--scale", "--days", "7", "--set", root).stdout
    on_paper, _, of_this_machine = printed.partition("\nmemory at the peak")
    assert on_paper.split() == shown.split()
    assert of_this_machine
    assert not (tmp_path / "store").exists()
