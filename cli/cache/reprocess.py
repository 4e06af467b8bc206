"""`opd cache reprocess`: new scores from stored ones."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import ConfigOption, JsonOption, SetOption, WorkerOption, load_run, parse_worker
from cli.output import make_progress, print_json


def reprocess(
    config: ConfigOption,
    sources: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="SCORER",
            help="Key or name of the scorer to read; several make a mixture.",
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="Name of the new scorer; a run uses it by teachers.TEACHER.scores = NAME.",
        ),
    ],
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Weight of each source in a mixture, in order."),
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Top-k ids to keep.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Mass at which a position's top-k ends."),
    ] = None,
    min_k: Annotated[int | None, typer.Option(min=1, help="Fewest ids with --top-p.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="Form of the shards, as score.codec names it.")
    ] = None,
    one_tail: Annotated[bool, typer.Option("--one-tail", help="Join the tail's buckets.")] = False,
    drop_candidates: Annotated[
        bool, typer.Option("--drop-candidates", help="Leave the student's own ids out.")
    ] = False,
    drop_draws: Annotated[
        bool, typer.Option("--drop-draws", help="Leave the drawn ids out.")
    ] = False,
    worker: WorkerOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make scores with a smaller signal, another codec or a mixture of teachers, with no teacher.

    The old scores stay. Killed and typed again, the command goes on; typed later, it adds what was
    scored since.
    """
    from pipeline.upkeep.reprocess import reprocess as make

    wanted: dict[str, object] = {"k": k, "top_p": top_p, "min_k": min_k}
    signal = {field: value for field, value in wanted.items() if value is not None}
    signal |= {"tail_buckets": 1} if one_tail else {}
    signal |= {"candidates": 0} if drop_candidates else {}
    signal |= {"draws": 0} if drop_draws else {}
    made = make(
        load_run(config, overrides).storage,
        sources,
        name,
        weights=weights or [],
        codec=codec,
        signal=signal,
        worker=parse_worker(worker),
        progress=make_progress(as_json=as_json),
    )
    if as_json:
        print_json({"stage": "reprocess", **asdict(made)})
        return
    state = "complete" if made.complete else "other workers' units are missing"
    print(
        f"scorer {made.scorer} ({made.name}): {made.units} units, {made.rows:,} rows, "
        f"{made.tokens:,} tokens made; {state}\n"
        f"use it: opd run -c {config} --set run.name={made.name} "
        f"--set teachers.main.scores={made.name}"
    )
