"""Views of a run: where it stands, what is left of it, and whether to go on."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.look.ended import alarms_beside_errors
from cli.look.statuspage import print_next, print_status
from cli.options import (
    LAST_ROUND,
    MAX_WORKERS,
    ConfigOption,
    JsonOption,
    RoundOption,
    SetOption,
    in_words,
    load_run,
    round_option,
)
from cli.output import in_bytes, in_hours, print_json, print_table
from cli.terminal import clear_screen, say
from schemas.config.run import MAX_ROUNDS

if TYPE_CHECKING:
    from pipeline.runs.forecast import Forecast
    from pipeline.runs.status import RunStatus

WATCH_S = 5.0
"""Seconds between two looks at a run that is watched."""

SCHEDULERS = "With --round, for schedulers"
"""Heading of the options that shape the list of a round's calls."""


def status(
    config: ConfigOption,
    round_index: Annotated[
        int | None,
        round_option("Show this round alone."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", "-w", help="Draw it again every few seconds, until all is done or Ctrl-C."
        ),
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where every round stands, its cost, and what comes next.

    A worker holds its unit by a lease that it renews; one that is gone frees the unit.
    """
    from pipeline.runs.status import run_status
    from pipeline.store import interrupts

    run = load_run(config, overrides)
    given = in_words(config, overrides)
    found = run_status(run, round_index)
    while watch and not found.is_over:
        clear_screen()
        _print_status(found, given, round_index, as_json=as_json)
        interrupts.pause(WATCH_S)
        found = run_status(run, round_index)
    _print_status(found, given, round_index, as_json=as_json)


def _print_status(
    found: "RunStatus", given: str, round_index: int | None, *, as_json: bool
) -> None:
    if as_json:
        # the figures of one round stand in the object itself, for programs that take no lists
        figures = asdict(found.rounds[0]) if round_index is not None and found.rounds else {}
        print_json({**asdict(found), **figures})
    else:
        print_status(found, only=round_index)
        if round_index is None and not found.changed:
            print_next(found, given)


def plan(
    config: ConfigOption,
    round_index: Annotated[
        int | None,
        round_option("Plan this round alone; default all rounds that are left."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_ROUNDS, help="Rounds to reach in total; default run.rounds."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_WORKERS,
            help="Calls that share rollout and score.",
            rich_help_panel=SCHEDULERS,
        ),
    ] = 1,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Score with this teacher only; may be repeated.",
            rich_help_panel=SCHEDULERS,
        ),
    ] = None,
    from_round: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=LAST_ROUND,
            help="First round that is asked for; earlier ones are not due.",
            rich_help_panel=SCHEDULERS,
        ),
    ] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List no calls.", rich_help_panel=SCHEDULERS),
    ] = False,
    at_scale: Annotated[
        bool,
        typer.Option("--scale", help="Show this kind of run from 10^6 to 10^12 tokens."),
    ] = False,
    days: Annotated[
        float,
        typer.Option(metavar="DAYS", min=0.01, max=3650, help="With --scale: done in this time."),
    ] = 7.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is left, before it is spent: teacher tokens, bytes, hours.

    With --round, the JSON also lists the calls that a scheduler makes for that round.
    """
    from pipeline.runs.curriculum.rounds import round_schedule, shown
    from pipeline.runs.forecast import forecast
    from pipeline.runs.run import check_run
    from pipeline.runs.tasks import next_round, round_tasks

    run = load_run(config, overrides)
    check_run(run)  # what is left of other settings is not what their owner asks
    if at_scale:
        from cli.look.scalepage import show_scale

        show_scale(run, days, as_json=as_json)
        return
    target = rounds or run.config.run.rounds
    coming = next_round(run, target) if round_index is None else round_index
    values = shown(round_schedule(run, coming)) if coming < target else {}
    if round_index is None:
        ahead, tasks = forecast(run, first=coming, rounds=target), None
    else:
        last = min(round_index + 1, target)
        ahead = forecast(run, first=round_index, rounds=last)
        tasks = round_tasks(
            run,
            round_index,
            rounds=range(from_round, target),
            workers=0 if dry_run else workers,
            teachers=teacher or (),
        )
    if as_json:
        head = {"stage": "plan", "run": run.name, "round": round_index, "target": target}
        further = asdict(tasks) if tasks else {}
        print_json({**head, **asdict(ahead), "schedule": values, **further})
        return
    say(f"run {run.name} at {run.storage.root}: {_span(ahead.rounds, target, round_index)}")
    if tasks is not None and tasks.state != "due":
        say(f"round {round_index} is {tasks.state}: {tasks.reason}")
    elif ahead.rounds:
        print_forecast(ahead)
    if values:
        say(f"round {coming}: " + ", ".join(f"{key} {value}" for key, value in values.items()))


def gate(
    config: ConfigOption,
    round_index: RoundOption,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide after a round: go on, stop at the target, or fail (exit code 8).

    Targets and limits stand in the [gate] table of the configuration.
    """
    from pipeline.runs.gate import judge
    from pipeline.runs.run import check_run

    run = load_run(config, overrides)
    check_run(run)
    with alarms_beside_errors(run):
        verdict = judge(run, round_index)
    if as_json:
        head = {"stage": "gate", "run": run.name, "round": round_index}
        print_json({**head, **asdict(verdict)})
    else:
        say(f"{verdict.decision}: {verdict.reason}")


def _span(left: int, target: int, round_index: int | None) -> str:
    if round_index is not None:
        return f"round {round_index} of {target}"
    return f"{left} of {target} rounds are left" if left else f"all {target} rounds are done"


def print_forecast(ahead: "Forecast") -> None:
    """Print what is left of a run."""
    most = "at most " if ahead.basis == "limits" else ""
    rows = [
        ("units of rollout", f"{ahead.units:,}"),
        ("sequences", f"{ahead.rows:,}"),
        ("response tokens", f"{most}{ahead.response_tokens:,}"),
        ("teacher tokens, nothing cached", f"{most}{ahead.teacher_tokens:,}"),
        ("score shards", f"{most}{in_bytes(ahead.cache_bytes)}"),
        ("objects of rollout and score", f"about {ahead.objects:,}"),
    ]
    rows += [(f"time of {stage}", in_hours(s)) for stage, s in ahead.seconds.items()]
    print_table("", ("what is left", ""), [list(row) for row in rows])
    if ahead.basis == "limits":
        say("by prompts.max_tokens and rollout.max_new_tokens; measured once a round is scored")
    else:
        say(f"by the rates of {ahead.basis}; times are summed over its workers")
