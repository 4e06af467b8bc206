"""`opd cache reindex`: the sequence indexes of a root, made anew."""

from dataclasses import asdict

import typer

from cli.cache.options import RootOption, ScorerArgument, SomeConfigOption
from cli.options import JsonOption, SetOption, open_store
from cli.output import make_progress, print_json
from cli.terminal import say
from schemas.errors import DataError


def reindex(
    scorer: ScorerArgument = None,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the sequence index anew, from the committed scores.

    What is damaged is set aside, not destroyed. Ends with exit code 4 where a shard cannot be
    read: its rows are not found.
    """
    from pipeline.cache.scorers import find_scorers, of_each_scorer
    from pipeline.store.writer import require_safe_writes
    from pipeline.upkeep.reindex import reindex_scorer

    storage, progress = open_store(config, root, overrides), make_progress(as_json=as_json)
    find_scorers(storage, scorer)  # a scorer that is not there is told first
    require_safe_writes(storage)
    found = dict(
        of_each_scorer(storage, scorer, lambda key: (key, reindex_scorer(storage, key, progress)))
    )
    code = DataError.exit_code if any(done.left_out for done in found.values()) else 0
    if as_json:
        listed = [{"scorer": key, **asdict(done)} for key, done in found.items()]
        print_json({"root": storage.root, "scorers": listed, "exit_code": code})
    for key, done in found.items() if not as_json else ():
        say(f"{key}: {done.units:,} units, {done.rows:,} rows in its index")
        for name, reason in done.faults.items():
            aside = f"; set aside as {done.aside[name]}" if name in done.aside else ""
            say(f"damaged: {name}: {reason}{aside}")
        for name in done.left_out:
            say(f"left out, for it cannot be read: {name}")
    raise typer.Exit(code)
