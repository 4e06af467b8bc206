"""The config commands: show, schema and validate."""

from typing import Any

import typer

from cli.helppage import CommandPage, GroupPage
from cli.options import ConfigOption, SetOption
from cli.output import print_json
from cli.terminal import say_json
from pipeline.runs.configsource import read_config
from schemas.config.file import config_fingerprint
from schemas.config.profiles.base import profile_names
from schemas.config.run import RunConfig

app = typer.Typer(
    cls=GroupPage,
    help="Show, describe and check the configuration of a run.",
    no_args_is_help=True,
)


@app.command(cls=CommandPage)
def show(config: ConfigOption, overrides: SetOption = None) -> None:
    """Print the resolved configuration, defaults included, as JSON.

    Where the file names a base, so are its values: `base` has the profile, with its version, and
    the keys whose values are its.
    """
    placed = read_config(config, overrides or ())
    shown = placed.config.model_dump(mode="json")
    if placed.base is not None:
        shown = {"base": {"name": placed.base.name, "keys": sorted(placed.base.keys)}, **shown}
    say_json(shown, indent=2)


@app.command(cls=CommandPage)
def schema() -> None:
    """Print the JSON schema: every key, its type, default and meaning."""
    found = RunConfig.model_json_schema()
    words = "Profile whose values stand under those of the file; without a version the newest."
    names = profile_names()
    base = {"type": "string", "description": words, "examples": names}
    say_json({**found, "properties": {"base": base, **found["properties"]}}, indent=2)


@app.command(cls=CommandPage)
def validate(config: ConfigOption, overrides: SetOption = None) -> None:
    """Check keys and values, and that models and prompt files are there."""
    from pipeline.engines.opening import require_engine
    from pipeline.models.loading import require_packages
    from pipeline.models.source import find_model
    from pipeline.prompts.files import require_prompt_file
    from pipeline.rewards.location import find_grader
    from pipeline.runs.ownfile import own_loss

    placed = read_config(config, overrides or ())
    resolved, place = placed.config, placed.place
    for section in (resolved.rollout, resolved.score, resolved.eval):
        if section is not None:
            require_engine(section.engine, section.server.urls)
    sections: dict[str, Any] = {"student": resolved.student}
    sections |= {f"teachers.{name}": section for name, section in resolved.teachers.items()}
    found = {key: find_model(place, section, key) for key, section in sections.items()}
    for key, source in found.items():
        if key == "student" or resolved.score.engine == "hf":
            require_packages(source)
    for key in ("train", "eval"):
        location = getattr(resolved.prompts, key)
        if location is not None:
            require_prompt_file(place, location, key=f"prompts.{key}", config=resolved)
    for graded in (resolved.eval, resolved.reward):
        if graded is not None:
            find_grader(graded, place)
    own_loss(resolved.loss, place)
    models = {key: source.location for key, source in found.items()}
    print_json({"valid": True, "fingerprint": config_fingerprint(resolved), "models": models})
