"""From what a text names to a path of this machine; each way in which that fails is told."""

from pathlib import Path

from schemas.errors import ConfigError
from schemas.foreign import shown
from schemas.location import Location, parse_location


def located(text: str) -> Location:
    """Return the place that a text names.

    Raises:
        ConfigError: it names none; the message repeats no secret.
    """
    try:
        return parse_location(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def local_path(place: Location) -> Path:
    """Return a path of this machine as an absolute one, its `~` and symbolic links followed.

    Raises:
        ConfigError: there is no such user, or the links lead in a circle.
    """
    return resolved(Path(place.path) if place.scheme else at_home(place.path))


def at_home(path: str) -> Path:
    """Return a path whose `~` is the home folder.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{shown(path)}: this machine has no home folder of {shown(path.split('/')[0])}; write "
            "the full path"
        ) from error


def resolved(path: Path) -> Path:
    """Return an absolute path whose symbolic links are followed.

    Raises:
        ConfigError: they lead in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{shown(str(path))} cannot be followed: its symbolic links lead in a circle, or a "
            "name is too long"
        ) from error
