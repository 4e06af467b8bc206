"""The doctor command: what could waste GPU hours, looked for before they are spent."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ConfigOption, JsonOption, SetOption, load_run, round_option
from cli.output import make_progress, print_json, print_table
from cli.terminal import say
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from schemas.config.section import MOST

if TYPE_CHECKING:
    from pipeline.admission.findings import Finding
    from schemas.records.scores import DriftRecord

MARKS = {"ok": "ok", "warning": "look", "failed": "FAILED"}


def doctor(
    config: ConfigOption,
    overrides: SetOption = None,
    engines: Annotated[
        bool,
        typer.Option(
            "--engines",
            help="Also load the models: score the student as its own teacher, and measure the "
            "noise of each teacher.",
        ),
    ] = False,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift", help="Compare the score engine with a float32 forward on rows of a round."
        ),
    ] = False,
    round_index: Annotated[
        int,
        round_option("Round whose rows --drift takes."),
    ] = 0,
    rows: Annotated[
        int, typer.Option(metavar="N", min=1, max=MOST, help="Rows of each teacher for --drift.")
    ] = 8,
    as_json: JsonOption = False,
) -> None:
    """Check store, models, tokenizers and engines before GPU hours are spent.

    Ends with the exit code of the first check that failed; warnings end with 0.
    """
    from pipeline.doctor.examine import examine

    run, progress = load_run(config, overrides), make_progress(as_json=as_json)
    found = list(examine(run))
    broken = any(one.state == "failed" for one in found)
    if engines and not broken:
        from pipeline.doctor.trial import try_engines

        found += list(try_engines(run, progress.note))
        broken = any(one.state == "failed" for one in found)
    records = _drift(run, round_index, rows, progress) if drift and not broken else []
    code = next((one.exit_code for one in found if one.state == "failed"), 0)
    if as_json:
        print_json(
            {
                "run": run.name,
                "findings": [asdict(one) for one in found],
                "drift": [one.model_dump(mode="json") for one in records],
                "exit_code": code,
            }
        )
    else:
        print_findings(found)
        for record in records:
            _print_drift(record)
    raise typer.Exit(code)


def _drift(run: Run, round_index: int, rows: int, progress: Progress) -> "list[DriftRecord]":
    from pipeline.doctor.drift import measure_drift

    return list(measure_drift(run, round_index, rows, note=progress.note))


def print_findings(found: "list[Finding]") -> None:
    """Print what was found, one thing a line."""
    width = max(len(one.name) for one in found)
    for one in found:
        say(f"{MARKS[one.state]:<6} {one.name:<{width}}  {one.words}")


def _print_drift(record: "DriftRecord") -> None:
    drift: dict[str, Any] = record.drift
    say(
        "",
        f"teacher {record.teacher}, {record.rows} rows, {record.tokens} tokens, nats:",
        f"  {record.engine}",
        f"  against {record.reference}",
    )
    names = {"token_logprob": "sampled token", "topk_logprobs": "top-k, common ids"}
    cells = [
        [words, *(f"{drift[name][figure]:.2e}" for figure in ("mean", "p99", "max"))]
        for name, words in names.items()
    ]
    cells.append(["KL", f"{drift['kl_mean']:.2e}", "", f"{drift['kl_max']:.2e}"])
    print_table("", ("|difference|", "mean", "99 %", "max"), cells)
    if record.rollout_kl is not None:
        say(f"KL of the rollout to the learner, before its first step: {record.rollout_kl:.2e}")
