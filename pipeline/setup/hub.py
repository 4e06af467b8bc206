"""Names of the hub become commits: a branch may move, a commit cannot."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from pipeline.models.naming import COMMIT, HUB_ID, HUB_ID_CHARS
from schemas.errors import ConfigError
from schemas.foreign import excerpt, shown

WAIT_S = 15
"""Seconds that the hub has to answer."""


@dataclass(frozen=True)
class Commit:
    """What a name of the hub stands for now; no commit where that could not be asked."""

    revision: str | None
    words: str
    """Where the commit is from, or why there is none."""


def commit_of(name: str, key: str) -> Commit:
    """Return the commit that the main branch of a model is at, from the hub or the local cache.

    Args:
        name: of the model.
        key: what messages call it.

    Raises:
        ConfigError: it can be no name of the hub, or the hub has no such model.
    """
    if not HUB_ID.fullmatch(name) or len(name) > HUB_ID_CHARS:
        raise ConfigError(
            f"{key} = {shown(name)}: there is no such folder, and it is no hub id{_near(name)}"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = HfApi().model_info(name, timeout=WAIT_S).sha
        if found is not None and COMMIT.fullmatch(found):
            return Commit(found, f"commit {found[:12]}, where it is now")
        words = "it named no commit"
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{key} = {name!r}: there is no such folder, and the hub has no such model, or shows "
            "it to others only: correct the name, or set HF_TOKEN"
        ) from error
    except Exception as error:  # of whichever HTTP library the hub's client has today
        words = excerpt(str(error).strip().split("\n")[0] or type(error).__name__, 120)
    cached = _cached(name)
    if cached is not None:
        return Commit(cached, "the hub was not reached, so the commit is that of the local cache")
    return Commit(
        None,
        f"the hub was not reached ({words}), and it is not in the local cache: put its commit "
        "hash into the line that says so",
    )


def _near(name: str) -> str:
    """Return a hint at a folder beside the one that was meant."""
    path = Path(name).expanduser()
    try:
        there = [one.name for one in path.parent.iterdir() if one.is_dir()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name[:255], there, n=1)
    return f"; did you mean {shown(str(path.parent / close[0]))}?" if close else ""


def _cached(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision="main")
    commit = Path(found).parent.name if isinstance(found, str) else ""
    return commit if COMMIT.fullmatch(commit) else None
