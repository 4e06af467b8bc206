"""The export command: the outcome of a run as folders that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import ConfigOption, JsonOption, SetOption, load_run
from cli.output import in_bytes, make_progress, print_json
from cli.terminal import say


def export(
    config: ConfigOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="The model folder; it must be new."),
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="N|best|last",
            help="Number of the checkpoint, which has learned from as many rounds; best is the "
            "one of the highest accuracy.",
        ),
    ] = "last",
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base: a whole model.")
    ] = False,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write all sequences with their scores as a dataset; it must be new.",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder with its model card.

    --dataset writes the sequences and their scores too.

    The card tells teachers, data, objective, figures with intervals, cost and commands, all from
    stored records. Nothing is overwritten, and a folder is there whole or not at all.
    """
    from pipeline.outcome.export import Targets, export_outcome

    run, progress = load_run(config, overrides), make_progress(as_json=as_json)
    targets = Targets(out, dataset)
    done = export_outcome(run, targets, checkpoint=checkpoint, merge=merge, progress=progress)
    if as_json:
        print_json(
            {
                "stage": "export",
                "checkpoint": done.choice.number,
                "policy_version": done.choice.manifest.policy_version,
                "path": str(out),
                "bytes": done.bytes,
                "dataset": None if dataset is None else str(dataset),
                "files": done.dataset.files if done.dataset else 0,
                "rows": done.dataset.rows if done.dataset else 0,
                "tokens": done.dataset.tokens if done.dataset else 0,
            }
        )
        return
    say(f"{out}: {in_bytes(done.bytes)}; {done.choice.why}")
    if done.dataset is not None:
        size = done.dataset
        say(f"{dataset}: {size.rows:,} rows, {size.tokens:,} tokens in {size.files} files")
