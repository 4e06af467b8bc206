"""What is told of each token has its words in the documentation."""

import pytest

from pipeline.objectives.diagnostics import DIAGNOSTICS
from tests.support.repository import REPOSITORY


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_the_page_of_losses_explains_every_figure_of_a_step(name: str) -> None:
    text = (REPOSITORY / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)
