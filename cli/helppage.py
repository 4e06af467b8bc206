"""What `--help` prints: commands and options under headings, each with its whole first sentence."""

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from cli.terminal import warn

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter  # typer shows these types nowhere else

    Row = tuple[str | None, str, str]

SENTENCE = 1000
"""More characters than any first sentence has: typer cuts longer ones in the middle."""

COLUMN = 30
"""Widest name that has its explanation on the same line."""


class CommandPage(TyperCommand):
    """A command whose help lists its options under the headings that they name."""

    def get_short_help_str(self, limit: int = SENTENCE) -> str:
        """Return the first sentence of the help, whole."""
        return super().get_short_help_str(max(limit, SENTENCE))

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write arguments and options."""
        _write(formatter, _parameters(self, ctx))


class GroupPage(TyperGroup):
    """A group whose help lists its commands under the headings that they name, options last."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; what is wrong with it is told as all else is, with exit code 2."""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except TyperException as error:
            told: Any = error  # the kinds that name no exit code are none of a command line's
            told.show(lines := io.StringIO())
            warn(*lines.getvalue().rstrip("\n").split("\n"))
            if getattr(getattr(told, "param", None), "name", None) == "config":
                warn("It is the TOML of a run, such as -c run.toml; `opd init` writes one.")
            sys.exit(told.exit_code)
        sys.exit(code or 0)

    def get_short_help_str(self, limit: int = SENTENCE) -> str:
        """Return the first sentence of the help, whole."""
        return super().get_short_help_str(max(limit, SENTENCE))

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write commands and options."""
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        rows: list[Row] = [
            (getattr(command, "rich_help_panel", None), command.name or "", sentence)
            for command in commands
            if not command.hidden and (sentence := command.get_short_help_str(SENTENCE))
        ]
        _write(formatter, rows, default="Commands")
        _write(formatter, _parameters(self, ctx))


def _parameters(command: "Command", ctx: "Context") -> "list[Row]":
    """Return heading, name and explanation of each visible parameter; arguments come first."""
    rows: list[Row] = []
    for parameter in command.get_params(ctx):
        is_argument = parameter.param_type_name == "argument"
        heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None)
        if record := parameter.get_help_record(ctx):
            rows.insert(0 if is_argument else len(rows), (heading, *record))
    return rows


def _write(formatter: "HelpFormatter", rows: "Sequence[Row]", *, default: str = "Options") -> None:
    """Write rows under their headings, in the order in which these first come, in one column."""
    width = min(max((len(name) for _, name, _ in rows), default=0), COLUMN)
    for heading in dict.fromkeys(row[0] for row in rows):
        with formatter.section(heading or default):
            formatter.write_dl(
                [(name.ljust(width), text) for group, name, text in rows if group == heading]
            )
