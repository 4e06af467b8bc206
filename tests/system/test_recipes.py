"""Recipes: the TOML of each is a whole configuration, and the list names them all."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from schemas.config.file import parse_config
from tests.support.repository import REPOSITORY

FOLDER = REPOSITORY / "docs" / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a language on a page."""
    return [
        body for one, body in FENCE.findall(page.read_text(encoding="utf-8")) if one == language
    ]


@each_recipe
def test_the_first_toml_of_a_recipe_is_a_whole_configuration(recipe: Path) -> None:
    config = parse_config(blocks(recipe, "toml")[0], where=recipe.name)
    assert config.teachers and config.run.root


@each_recipe
def test_a_recipe_has_commands_that_use_its_toml(recipe: Path) -> None:
    calls = re.findall(r"\bopd [a-z]+.* -c \S*run\.toml", "\n".join(blocks(recipe, "sh")))
    assert calls


@each_recipe
def test_prompts_of_a_recipe_are_lines_of_json(recipe: Path) -> None:
    for line in "".join(blocks(recipe, "json")).splitlines():
        assert {"prompt", "messages"} & json.loads(line).keys()


def test_the_list_of_recipes_names_each() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", text)) == {path.name for path in RECIPES}


def test_losses_that_the_sweep_names_can_be_had() -> None:
    page = FOLDER / "loss-sweep.md"
    kinds = re.findall(r"for loss in (.+);", "\n".join(blocks(page, "sh")))[0].split()
    text = blocks(page, "toml")[0]
    for kind in kinds:
        assert parse_config(text, where="x", overrides=[f"loss.kind={kind}"]).loss.kind == kind


def test_each_settings_file_is_well_formed() -> None:
    for page in RECIPES:
        for body in blocks(page, "toml"):
            assert tomllib.loads(body)
