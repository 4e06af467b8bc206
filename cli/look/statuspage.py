"""What `opd status` draws: a table of rounds, who is at work, what failed, what comes next."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from cli.look.ended import alarm_lines
from cli.output import in_hours, without_reward
from cli.terminal import cell, say, say_table, warn
from pipeline.runs.figures import in_percent
from pipeline.runs.status import RoundStatus, RunStatus

COLUMNS = (
    *("round", "rollout", "samples", "grade", "score", "train", "eval", "reward"),
    *("accuracy", "reverse KL", "teacher tokens", "reused rows", "seconds"),
)
OF_REWARDS = frozenset({"grade", "reward"})
"""Columns that are left out where there are no rewards."""

MARKS = {"done": ("done", ""), "partial": ("partial", "yellow"), "missing": ("–", "dim")}
"""State of a stage → what stands for it, and how."""

STATUS_WIDTH = 110
"""Columns of the table of a run where no terminal says how many it has."""


def print_status(status: RunStatus, *, only: int | None = None) -> None:
    """Print where a run stands as a table.

    Args:
        status: the run, or one round of it.
        only: the round that was asked for; None for all.
    """
    say(f"run {status.run} at {status.root}")
    rows: list[dict[str, str | Text]] = []
    if status.initial_accuracy is not None:
        rows.append({"round": "start", "accuracy": f"{status.initial_accuracy:.1%}"})
    rows += [_cells(row) for row in status.rounds]
    off = {
        name for name in ("samples", "grade") if all(_is_off(row, name) for row in status.rounds)
    }
    off |= OF_REWARDS if "grade" in off else set()
    titles = [title for title in COLUMNS if title not in off]
    cells = [[row.get(title, "") for title in titles] for row in rows]
    say_table(titles, cells, left=(), width=STATUS_WIDTH, wrap_titles=True)
    for line in _remarks(status):
        say(line)
    left = status.rounds_planned - len(status.rounds)
    if only is None and left:
        say(f"{left} of {status.rounds_planned} rounds not begun")
    if status.next_failure is not None:
        say(f"round {status.next_round} could not begin: {status.next_failure}")
    if only is not None and not status.rounds:
        say(f"round {only} has not begun")
    if status.changed:
        warn(
            "opd: the configuration is not that of this run, and its stages would refuse it:",
            *(f"  {change}" for change in status.changed),
        )


def _remarks(status: RunStatus) -> Iterator[str]:
    """Yield what is told below the table."""
    for one in status.rounds:
        if told := without_reward(one.without_reward):
            yield f"round {one.round}: {told}"
    if graded := [words for one in status.rounds if (words := _graded(one))]:
        yield graded[-1]
    if status.teacher_accuracy is not None:
        yield f"teacher accuracy {status.teacher_accuracy:.1%}"
    for one in status.rounds:
        yield from _at_work(one)
    yield from alarm_lines(status.alarms)


def _graded(one: RoundStatus) -> str:
    """Return a round's accuracy with its interval; nothing where it was not graded."""
    if one.accuracy is None or one.accuracy_low is None or one.accuracy_high is None:
        return ""
    found = in_percent(one.accuracy, one.accuracy_low, one.accuracy_high)
    passed = "".join(f", pass@{k} {share:.1%}" for k, share in one.pass_at.items() if k != "1")
    return f"accuracy of round {one.round}: {found}{passed}"


def print_next(status: RunStatus, given: str) -> None:
    """Print what comes next, the command for it, and how long all that is left takes.

    Args:
        status: where the run stands.
        given: the options that name the run.
    """
    if status.next_round is None:
        say(f"next: `opd report {given}`, or `opd export {given} --out FOLDER`")
        say(f"all {status.rounds_planned} rounds are done")
        return
    todo = f"{status.next_stage} of round {status.next_round}"
    stage = f"opd {status.next_stage} {given} --round {status.next_round}"
    say(f"next: {todo}: `{stage}`, or `opd run {given}` for all that is left")
    if rates := _rates(status.rounds):
        say(rates)
    if status.seconds_left is not None:
        say(f"left: {in_hours(status.seconds_left)} of work at the rates of the last scored round")


def _rates(rounds: Sequence[RoundStatus]) -> str:
    """Return the tokens a second of each stage in the last round that was trained."""
    for row in reversed(rounds):
        if row.stages["train"].state != "done":
            continue
        timed = {name: one for name, one in row.stages.items() if one.seconds and one.tokens}
        rates = [f"{name} {one.tokens / one.seconds:,.0f}" for name, one in timed.items()]
        return f"tokens a second in round {row.round}: {', '.join(rates)}" if rates else ""
    return ""


def _at_work(row: RoundStatus) -> list[str]:
    """Return a line for each worker of a round, and for each stage that failed and stands still."""
    lines = []
    for name, stage in row.stages.items():
        where = f"round {row.round} {name}:"
        for holder in stage.workers:
            who = f"process {holder.process} on {holder.host}"
            age = f"renewed {holder.age_s:,.0f} s ago"
            state = f"{age}; gone, its unit is free" if holder.gone else age
            lines.append(f"{where} {who} holds {holder.unit}, {state}")
        if stage.failure is not None and not stage.is_running:
            lines.append(f"{where} failed: {stage.failure}")
    return lines


def _is_off(row: RoundStatus, stage: str) -> bool:
    return row.stages[stage].state == "off"


def _cells(row: RoundStatus) -> dict[str, str | Text]:
    """Return what stands under the titles of a round's row."""
    seconds = sum(stage.seconds for stage in row.stages.values())
    return {
        "round": str(row.round),
        **{name: _stage_cell(row, name) for name in row.stages},
        "reward": "" if row.reward is None else f"{row.reward:.4f}",
        "accuracy": "" if row.accuracy is None else f"{row.accuracy:.1%}",
        "reverse KL": "" if row.reverse_kl is None else f"{row.reverse_kl:.4f}",
        "teacher tokens": f"{row.teacher_tokens:,}",
        "reused rows": f"{row.reused_rows:,}",
        "seconds": f"{seconds:,.0f}",
    }


def _stage_cell(row: RoundStatus, name: str) -> Text:
    stage = row.stages[name]
    counted = stage.state == "partial" and stage.units
    done = f"{stage.units_done}/{stage.units}" if counted else ""
    if stage.is_running:
        return cell(f"{done} running".strip(), "green")
    if stage.failure is not None:
        return cell(f"{done} failed".strip(), "red")
    return cell(done, "yellow") if done else cell(*MARKS.get(stage.state, (stage.state, "dim")))
