"""The prompts commands: show."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.helppage import CommandPage, GroupPage
from cli.options import ConfigOption, JsonOption, SetOption, load_run
from cli.output import print_json, print_table
from cli.terminal import say

if TYPE_CHECKING:
    from pipeline.prompts.preview import Preview

app = typer.Typer(
    cls=GroupPage,
    help="Look at a prompt: its record, its text, its token ids.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    """Keep `show` a command of a group, though it is the only one."""


@app.command(cls=CommandPage)
def show(
    config: ConfigOption,
    number: Annotated[
        int | None,
        typer.Option(
            "--row",
            metavar="N",
            min=1,
            help="Line or row of the file, from 1, as messages name it; default its first record.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--eval", help="A record of prompts.eval, not of prompts.train.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one record as it is in the file, as text, and token by token.

    The ids are those that the run has pinned, or would pin. Nothing is stored.
    """
    from pipeline.models.source import find_model
    from pipeline.models.tokenizer import model_tokenizer
    from pipeline.prompts.preview import preview_prompt

    run = load_run(config, overrides)
    tokenizer = model_tokenizer(find_model(run.place, run.config.student, "student"))
    found = preview_prompt(run, "eval" if held_out else "train", tokenizer, number)
    if as_json:
        record = json.loads(json.dumps(found.record, default=str))
        print_json({**asdict(found), "record": record, "run": run.name})
    else:
        _print(found)


def _print(found: "Preview") -> None:
    say(f"{found.place}, of prompts.{found.split}", "", "record")
    record = json.dumps(found.record, indent=2, ensure_ascii=False, default=str)
    say(*(f"  {line}" for line in record.split("\n")), "", "text")
    say(*(f"  {line}" for line in found.text.split("\n")), "")
    say(f"{len(found.tokens)} token ids, {'pinned' if found.pinned else 'not pinned'}")
    cells = [
        [str(one.id), _quoted(one.piece), _quoted(one.text), "special" if one.special else ""]
        for one in found.tokens
    ]
    print_table("", ("id", "piece", "text", ""), cells, left=(1, 2, 3))
    for note in found.notes:
        say(f"note: {note}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
