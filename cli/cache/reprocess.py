"""`opd cache reprocess`: new scores from stored ones."""

from dataclasses import asdict
from typing import Annotated, get_args

import typer

from cli.options import ConfigOption, JsonOption, SetOption, WorkerOption, load_run, parse_worker
from cli.output import make_progress, print_json
from cli.terminal import say
from schemas.config.score import ScoreSection
from schemas.config.section import MOST

SOURCES, KEPT = "What to read", "What the new scores keep; default all"
"""Headings of the options in the help."""

CODECS = get_args(ScoreSection.model_fields["codec"].annotation)
"""Names of the codecs, as `score.codec` takes them."""

Sources = Annotated[
    list[str],
    typer.Option(
        "--from",
        metavar="SCORER",
        help="Key or name of a stored scorer; repeat it to mix several.",
        rich_help_panel=SOURCES,
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        metavar="SHARE",
        help="Weight of each source in a mixture, in the same order.",
        rich_help_panel=SOURCES,
    ),
]
Name = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="NAME",
        help="Name of the new scorer; a run uses it by teachers.TEACHER.scores = NAME.",
    ),
]
K = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=MOST, help="Ids of each position.", rich_help_panel=KEPT),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="MASS",
        min=0.0,
        max=1.0,
        help="Probability mass at which a position's top-k ends.",
        rich_help_panel=KEPT,
    ),
]
MinK = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=MOST,
        help="Fewest ids of a position with --top-p.",
        rich_help_panel=KEPT,
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"Form of the shards: {' or '.join(CODECS)}.", rich_help_panel=KEPT
    ),
]
OneTail = Annotated[
    bool,
    typer.Option("--one-tail", help="Join the tail's buckets into one.", rich_help_panel=KEPT),
]
DropCandidates = Annotated[
    bool,
    typer.Option(
        "--drop-candidates", help="Leave out the student's own ids.", rich_help_panel=KEPT
    ),
]
DropDraws = Annotated[
    bool,
    typer.Option(
        "--drop-draws", help="Leave out the ids drawn from the teacher.", rich_help_panel=KEPT
    ),
]

DropSample = Annotated[
    bool,
    typer.Option("--drop-sample", help="Leave out the teacher's sample.", rich_help_panel=KEPT),
]
DropTemperatures = Annotated[
    bool,
    typer.Option(
        "--drop-temperatures", help="Leave out log Z at other temperatures.", rich_help_panel=KEPT
    ),
]


def reprocess(
    config: ConfigOption,
    sources: Sources,
    name: Name,
    weights: Weights = None,
    k: K = None,
    top_p: TopP = None,
    min_k: MinK = None,
    codec: Codec = None,
    one_tail: OneTail = False,
    drop_candidates: DropCandidates = False,
    drop_draws: DropDraws = False,
    drop_sample: DropSample = False,
    drop_temperatures: DropTemperatures = False,
    worker: WorkerOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make new scores from stored ones, without a teacher.

    Fewer ids, another codec, or a mixture of several teachers. The old scores stay. Safe to
    re-run: it resumes, and adds scores made since.
    """
    from pipeline.upkeep.reprocess import reprocess as make

    wanted: dict[str, object] = {"k": k, "top_p": top_p, "min_k": min_k}
    signal = {field: value for field, value in wanted.items() if value is not None}
    signal |= {"tail_buckets": 1} if one_tail else {}
    signal |= {"candidates": 0, "uneven": False} if drop_candidates else {}
    signal |= {"draws": 0} if drop_draws else {}
    signal |= {"sample": 0} if drop_sample else {}
    signal |= {"temperatures": ()} if drop_temperatures else {}
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
    say(
        f"scorer {made.scorer} ({made.name}): {made.units} units, {made.rows:,} rows, "
        f"{made.tokens:,} tokens made; {state}",
        f"use it: opd run -c {config} --set run.name={made.name} "
        f"--set teachers.main.scores={made.name}",
    )
