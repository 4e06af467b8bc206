"""The cache commands: what the teacher caches of a root hold, and their upkeep."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.cache import cleanup, reindex, reprocess, tables
from cli.cache.options import (
    OneScorerArgument,
    RescoreOption,
    RootOption,
    SampleOption,
    ScorerArgument,
    SomeConfigOption,
)
from cli.cache.rescore import verify_rescored
from cli.helppage import CommandPage, GroupPage
from cli.options import JsonOption, SetOption, open_root, open_store
from cli.output import make_progress, print_json
from cli.terminal import say
from schemas.errors import ConfigError, DataError, IdentityError

if TYPE_CHECKING:
    from pipeline.upkeep.verify import Verification

HELP = "Inspect, check, export and clean up the teacher caches of a root."

app = typer.Typer(cls=GroupPage, help=HELP, no_args_is_help=True)


@app.command("ls", cls=CommandPage)
def list_(
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the scorers: teacher, codec, size, and the rounds that use them."""
    from pipeline.upkeep.inventory import list_caches

    storage = open_store(config, root, overrides)
    entries = list(list_caches(storage))
    if as_json:
        print_json({"root": storage.root, "scorers": [asdict(entry) for entry in entries]})
    else:
        tables.print_caches(storage.root, entries)


@app.command(cls=CommandPage)
def verify(
    scorer: ScorerArgument = None,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    sample: SampleOption = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of what --sample and --rescore choose.")
    ] = 0,
    rescore: RescoreOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="NATS",
            help="With --rescore: exit code 4 where a sampled token drifts by more.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Re-read committed scores; name shards that are damaged or missing.

    Ends with exit code 4 where data is bad, and 3 where a shard is of another scorer. With
    --rescore, the teacher of the configuration scores stored rows again, and they are compared.
    """
    if rescore is not None and root is None and sample is None:
        verify_rescored(
            config,
            overrides,
            scorer,
            rows=rescore,
            seed=seed,
            tolerance=tolerance,
            as_json=as_json,
        )
    if rescore is not None or tolerance is not None:
        raise ConfigError("--rescore goes with --config, --seed and --tolerance, without --sample")
    from pipeline.cache.scorers import of_each_scorer
    from pipeline.upkeep.verify import verify_scorer

    storage, progress = open_store(config, root, overrides), make_progress(as_json=as_json)
    look = partial(verify_scorer, storage, sample=sample, seed=seed, progress=progress)
    found = of_each_scorer(storage, scorer, look)
    code = _code_of(found)
    if as_json:
        scorers = [asdict(one) for one in found]
        print_json({"root": storage.root, "scorers": scorers, "exit_code": code})
    else:
        tables.print_verifications(storage.root, found)
    raise typer.Exit(code)


@app.command(cls=CommandPage)
def stats(
    scorer: ScorerArgument = None,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show bytes per token, mass, entropy, odd values and stop tokens."""
    from pipeline.cache.scorers import of_each_scorer
    from pipeline.upkeep.stats import cache_figures

    storage, progress = open_store(config, root, overrides), make_progress(as_json=as_json)
    look = partial(cache_figures, storage, progress=progress)
    found = of_each_scorer(storage, scorer, look)
    code = DataError.exit_code if any(one.refused for one in found) else 0
    if as_json:
        scorers = [asdict(one) for one in found]
        print_json({"root": storage.root, "scorers": scorers, "exit_code": code})
    else:
        for one in found:
            tables.print_figures(one)
    raise typer.Exit(code)


@app.command(cls=CommandPage)
def export(
    scorer: OneScorerArgument,
    to: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="A new file, or a new folder, which gets one file for each shard."
        ),
    ],
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help="parquet or jsonl.")],
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write scores to plain Parquet or JSON lines, for other programs."""
    from pipeline.cache.scorers import find_scorer_key
    from pipeline.upkeep.export import FORMATS, export_scores

    if kind not in FORMATS:
        raise ConfigError(f"--format is {kind!r}; it can be {' or '.join(FORMATS)}")
    storage, progress = open_store(config, root, overrides), make_progress(as_json=as_json)
    key = find_scorer_key(storage, scorer)
    done = export_scores(storage, key, to, kind=kind, progress=progress)
    if as_json:
        print_json(asdict(done))
    else:
        say(f"{done.rows:,} rows, {done.tokens:,} tokens in {done.files} files at {done.path}")


@app.command(cls=CommandPage)
def merge(
    source: Annotated[
        str, typer.Option("--from-root", metavar="URL", help="Root to copy from; it is only read.")
    ],
    scorer: ScorerArgument = None,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the scores of another root that this one lacks."""
    from pipeline.cache.scorers import of_each_scorer
    from pipeline.upkeep.merge import merge_scorer

    storage, other = open_store(config, root, overrides, may_be_new=True), open_root(source)
    progress = make_progress(as_json=as_json)
    copy = partial(merge_scorer, other, storage, progress=progress)
    done = of_each_scorer(other, scorer, copy)
    if as_json:
        print_json({"root": storage.root, "scorers": [asdict(one) for one in done]})
        return
    for one in done:
        say(f"{one.scorer}: {one.units} units, {one.rows:,} rows, {one.tokens:,} tokens copied")


for command in (cleanup.gc, cleanup.pin, cleanup.unpin, reindex.reindex, reprocess.reprocess):
    app.command(cls=CommandPage)(command)


def _code_of(found: "Sequence[Verification]") -> int:
    if any(one.damaged or one.missing for one in found):
        return DataError.exit_code
    return IdentityError.exit_code if any(one.foreign for one in found) else 0
