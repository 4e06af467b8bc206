"""`opd cache gc`, `pin` and `unpin`: what nothing names, and what stays all the same."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.cache import tables
from cli.cache.options import OneScorerArgument, RootOption, SomeConfigOption
from cli.options import JsonOption, SetOption, open_store
from cli.output import make_progress, print_json
from cli.terminal import say

if TYPE_CHECKING:
    from pipeline.upkeep.garbage import Collection, Garbage


def gc(
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete; without it, only list what would be deleted.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(min=0.0, metavar="HOURS", help="Keep everything that is younger.")
    ] = 24.0,
    unused_scorers: Annotated[
        bool,
        typer.Option(
            "--unused-scorers", help="Also delete whole scorers that no run of the root names."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find objects that nothing in the root names, and delete them if asked."""
    from pipeline.store.writer import require_safe_writes
    from pipeline.upkeep.garbage import delete_garbage, find_garbage

    storage, progress = open_store(config, root, overrides), make_progress(as_json=as_json)
    limit_s = older_than * 3600
    found = find_garbage(storage, limit_s=limit_s, progress=progress)
    todo = found.todo(scorers=unused_scorers)
    if delete:
        require_safe_writes(storage)
        todo = delete_garbage(storage, found, todo, limit_s=limit_s, progress=progress)
    if as_json:
        print_json({"root": storage.root, "deleted": delete, **collection_json(found, todo)})
    else:
        tables.print_collection(storage.root, found, todo, deleted=delete)


def pin(
    scorer: OneScorerArgument,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why, for people.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Protect a scorer's whole cache from gc."""
    from pipeline.cache.scorers import find_scorer_key
    from pipeline.upkeep.garbage import pin_scorer_cache

    storage = open_store(config, root, overrides)
    key = find_scorer_key(storage, scorer)
    _report_pin(key, pinned=True, changed=pin_scorer_cache(storage, key, note), as_json=as_json)


def unpin(
    scorer: OneScorerArgument,
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let gc delete a scorer's cache again."""
    from pipeline.cache.scorers import find_scorer_key
    from pipeline.upkeep.garbage import unpin_scorer_cache

    storage = open_store(config, root, overrides)
    key = find_scorer_key(storage, scorer)
    _report_pin(key, pinned=False, changed=unpin_scorer_cache(storage, key), as_json=as_json)


def collection_json(found: "Collection", objects: "Sequence[Garbage]") -> dict[str, Any]:
    """Return the JSON object of a clean-up.

    Args:
        found: what was found.
        objects: what went, or would go.
    """
    return {
        "objects": len(objects),
        "bytes": sum(one.num_bytes for one in objects),
        "keys": [one.key for one in objects],
        "leftovers": [one.name for one in found.leftovers],
        "young": found.young,
        "unused_scorers": [
            {
                "scorer": one.scorer,
                "bytes": sum(part.num_bytes for part in one.objects),
                "young": one.is_young,
                "held": one.is_held,
            }
            for one in found.unused
        ],
        "pinned": found.pinned,
    }


def _report_pin(scorer: str, *, pinned: bool, changed: bool, as_json: bool) -> None:
    if as_json:
        print_json({"scorer": scorer, "pinned": pinned, "changed": changed})
    else:
        before = "" if changed else ", as it was"
        say(f"{scorer} is {'pinned' if pinned else 'not pinned'}{before}")
