"""Names of models in the configuration: whether they can be folders or ids of the hub."""

import os
import re
from pathlib import Path

from pipeline.store.place import ConfigPlace
from schemas.errors import ConfigError
from schemas.foreign import shown

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

HUB_ID = re.compile(r"(?!.*(--|\.\.))([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

HUB_ID_CHARS = 96


def resolved_place(place: ConfigPlace, name: str, key: str) -> str:
    """Return where a name leads: an absolute path, or a URL.

    Args:
        place: the configuration's.
        name: what it says.
        key: what messages call it.

    Raises:
        ConfigError: it can be no path.
    """
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"{key} = {name!r}: expected the path of a folder, or a hub id")
    try:
        resolved = place.resolve(name)
        if "://" not in resolved:
            os.stat(resolved)
    except (FileNotFoundError, NotADirectoryError):
        return resolved
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go in circles
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"{key} = {shown(name)} cannot be read ({reason}): correct the path, or its permissions"
        ) from error
    return resolved


def require_folder(model: str, resolved: str, key: str) -> None:
    """Make sure that a place is the folder of a whole model.

    Args:
        model: what the configuration says.
        resolved: where that leads.
        key: what messages call the section.

    Raises:
        ConfigError: it is none.
    """
    folder = Path(resolved)
    if "://" in resolved:
        raise ConfigError(
            f"{key}.model = {model!r} is {resolved}, and models are not read from a store: "
            "give the full path of a folder, or a hub id with its revision"
        )
    if folder.is_file():
        raise ConfigError(
            f"{key}.model = {model!r} is the file {folder}: expected the folder of a Hugging Face "
            "model, with config.json, a tokenizer and weights"
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{key}.model = {model!r}: there is no folder {folder}. Correct the path, or, "
            f"if it is a hub id, add {key}.revision with the model's commit hash"
        )
    if not os.path.lexists(folder / "config.json"):
        raise ConfigError(
            f"{key}.model = {model!r}: {folder} has no config.json, so it is not a Hugging "
            "Face model folder"
        )


def require_hub(key: str, field: str, name: str, revision: str) -> None:
    """Make sure that a hub id and its revision can be some.

    Args:
        key: what messages call the section.
        field: `model` or `base`, the option that has the id.
        name: the id.
        revision: of the id.

    Raises:
        ConfigError: they cannot.
    """
    option = f"{key}.revision" if field == "model" else f"{key}.{field}_revision"
    if not HUB_ID.fullmatch(name) or len(name) > HUB_ID_CHARS:
        raise ConfigError(
            f"{key}.{field} = {shown(name)} is no hub id, which {option} asks for: expected "
            "'owner/name' of letters, digits, '-', '_' and '.'. For a folder, remove the revision "
            "and correct the path"
        )
    if not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"{option} = {revision!r} may move; give the full commit hash of the model's page, 40 "
            "characters from 0-9 and a-f"
        )
