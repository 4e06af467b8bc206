"""The try command: one small round through every stage, and what the whole run will cost."""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.doctor import print_findings
from cli.options import ConfigOption, JsonOption, SetOption, in_words, load_run
from cli.output import make_progress, print_json, print_result, result_json
from cli.runs import print_forecast
from cli.terminal import say
from cli.training.launched import train_one
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from schemas.errors import ConfigError, OpdError

if TYPE_CHECKING:
    from pipeline.admission.findings import Finding
    from pipeline.runs.forecast import Forecast
    from pipeline.setup.attempt import Timed
    from pipeline.stages.rounds import TrainCall


ROWS = 16
"""Most sequences of the small round: the report has all of them."""


def try_run(
    config: ConfigOption,
    page: Annotated[
        Path,
        typer.Option(
            "--report", metavar="FILE", help="Page on the round; an older one is replaced."
        ),
    ] = Path("try.html"),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a run: one round of 8 prompts through every stage, then its cost.

    The round has a store of its own, which is deleted; that of the run is not written to. Then come
    a report, as `opd report` writes it, and the findings of `opd doctor`. Ends with the exit code
    of what failed first.
    """
    run = load_run(config, overrides)
    try:
        stages, ahead = _round(run, config, overrides or [], page=page, as_json=as_json)
    except OpdError:
        if not as_json:
            print_findings([one for one in _findings(run) if one.state != "ok"])
        raise
    findings = _findings(run)
    code = next((one.exit_code for one in findings if one.state == "failed"), 0)
    if as_json:
        _print_json(run, stages, findings, ahead, code)
    else:
        say("", "what opd doctor finds")
        print_findings(findings)
        say("")
        print_forecast(ahead)
        say("", *_following(page, in_words(config, overrides), code))
    raise typer.Exit(code)


def _following(page: Path, given: str, code: int) -> list[str]:
    """Return what to do next."""
    if code:
        return ["Next: mend what FAILED"]
    look = [f"  open {page}: what the student wrote, token by token"] if page.exists() else []
    return ["Next:", *look, f"  opd run {given}"]


def _round(
    run: Run, config: str, overrides: list[str], *, page: Path, as_json: bool
) -> "tuple[list[Timed], Forecast]":
    """Do the small round; return its stages and what they say of the whole run."""
    from pipeline.setup.attempt import small_settings, try_round, whole_cost
    from pipeline.store.disk.scratch import scratch

    progress, stages = make_progress(as_json=as_json), list["Timed"]()
    with scratch("try") as folder:
        given = [*overrides, *small_settings(run.config, str(folder / "root"))]
        tried = load_run(config, given)

        def train(progress: Progress) -> "TrainCall":
            return partial(
                train_one, tried, config, overrides=given, progress=progress, as_json=as_json
            )

        for one in try_round(tried, train=train, progress=progress):
            stages.append(one)
            if not as_json:
                print_result(one.result, one.seconds)
        _report(tried, page, progress)
        return stages, whole_cost(run, tried, stages)


def _report(tried: Run, page: Path, progress: Progress) -> None:
    """Write a page on the small round; where it cannot be written, the round is none the worse."""
    from pipeline.report.writing import write_report

    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        written = write_report([tried], page, rows=ROWS, column=None, written_at=now)
        progress.note(f"report: {written.path}")
    except ConfigError as error:
        progress.note(f"no report was written: {error}")


def _findings(run: Run) -> "list[Finding]":
    from pipeline.doctor.examine import examine

    return list(examine(run))


def _print_json(
    run: Run, stages: "list[Timed]", findings: "list[Finding]", ahead: "Forecast", code: int
) -> None:
    lines: list[dict[str, Any]] = [result_json(one.result, one.seconds) for one in stages]
    print_json(
        {
            "stage": "try",
            "run": run.name,
            "stages": lines,
            "findings": [asdict(one) for one in findings],
            "cost": asdict(ahead),
            "exit_code": code,
        }
    )
