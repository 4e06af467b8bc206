"""The commands of `opd`, under the headings of its help.

Must not import torch, vllm or deepspeed: commands import what they need when they run.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from cli import config as inspect_config
from cli import doctor, prompts, quickstart, runs, stages
from cli.cache import commands as cache
from cli.helppage import CommandPage, GroupPage
from cli.look import export, report, track
from cli.setup.attempt import try_run
from cli.setup.init import init
from cli.terminal import say

app = typer.Typer(
    cls=GroupPage,
    help="On-policy distillation with an offline teacher cache.",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="New here? Run `opd quickstart`. `opd COMMAND --help` explains a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start here": {
        "quickstart": quickstart.quickstart,
        "init": init,
        "try": try_run,
        "doctor": doctor.doctor,
        "config": inspect_config.app,
    },
    "Stages": {
        "run": stages.run_all,
        "rollout": stages.rollout,
        "grade": stages.grade,
        "score": stages.score,
        "train": stages.train,
        "eval": stages.evaluate,
    },
    "Look": {
        "status": runs.status,
        "report": report.report,
        "export": export.export,
        "track": track.track,
        "plan": runs.plan,
        "prompts": prompts.app,
    },
    "Schedulers": {"gate": runs.gate},
    "Cache": {"cache": cache.app},
}
"""Heading in `opd --help` → command → what it runs."""


def _show_version(asked: bool) -> None:
    if asked:
        from pipeline.runs.software import opd_version

        say(f"opd {opd_version()}")
        raise typer.Exit


@app.callback()
def opd(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version),
    ] = False,
) -> None:
    """Take what stands before any command."""


def _add_commands() -> None:
    for heading, commands in COMMANDS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=heading)
            else:
                app.command(name, cls=CommandPage, rich_help_panel=heading)(command)


_add_commands()
