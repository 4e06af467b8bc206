"""Files of services that are read through fsspec, such as the hub: listed, and fetched whole.

Promises: what is fetched is bounded, and lies in a temporary folder as long as somebody holds it;
what a library raises becomes an error that says who must act.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.store import interrupts
from pipeline.store.disk.scratch import disk_fault, scratch
from schemas.errors import ConfigError, OpdError, StorageError
from schemas.foreign import excerpt, shown, without_secrets

PIECE = 1 << 20

ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

MISUSED = (ImportError, ValueError, TypeError, NotImplementedError)
"""What fsspec and its filesystems raise for a scheme or a URL that they do not know."""


@dataclass
class Fetched:
    """A file that lies in a temporary folder until nobody holds this any more."""

    path: Path
    stack: ExitStack = field(repr=False)

    def __post_init__(self) -> None:
        """Let the folder go with this."""
        weakref.finalize(self, self.stack.close)


@dataclass(frozen=True)
class Remote:
    """A service, and what a URL names in it."""

    url: str
    key: str
    """Key of the configuration that names it."""

    @property
    def scheme(self) -> str:
        """Return the scheme of the URL."""
        return self.url.partition("://")[0]

    def names(self) -> list[str] | None:
        """Return the URLs of the files in the folder that it is; None where it is no folder.

        Raises:
            ConfigError: the scheme is unknown, or its library is not installed.
            StorageError: the service does not answer.
        """
        try:
            with _explained(self):
                filesystem = _filesystem(self.scheme)
                found = filesystem.ls(self._path(filesystem), detail=True)
        except ABSENT:
            return None
        files = [str(one["name"]) for one in found if one.get("type") == "file"]
        urls = [name if "://" in name else f"{self.scheme}://{name}" for name in files]
        return [url for url in urls if url.rstrip("/") != self.url.rstrip("/")] or None

    def fetch(self, most: int) -> Fetched | None:
        """Return a copy of the file, or None where there is none.

        Args:
            most: bytes that it may have.

        Raises:
            ConfigError: it is larger, the scheme is unknown, or its library is not installed.
            StorageError: the service does not answer, or the disk is full.
        """
        stack = ExitStack()
        path = stack.enter_context(scratch("prompts")) / "file"
        try:
            with _explained(self), path.open("wb") as file:
                for piece in self._pieces(most):
                    file.write(piece)
        except BaseException as error:
            stack.close()
            if isinstance(error, ABSENT):
                return None
            raise
        return Fetched(path, stack)

    def _pieces(self, most: int) -> Iterator[bytes]:
        filesystem, total = _filesystem(self.scheme), 0
        with filesystem.open(self._path(filesystem), "rb") as source:
            while piece := source.read(PIECE):
                interrupts.beat()
                total += len(piece)
                if total > most:
                    raise ConfigError(too_large(self.key, self.url, most))
                yield piece

    def _path(self, filesystem: Any) -> str:
        return str(filesystem._strip_protocol(self.url))


def too_large(key: str, location: str, most: int) -> str:
    """Return the message that files are larger than they may be."""
    return (
        f"{key}: {location} is larger than {most / 2**30:.3g} GiB, which prompts.max_gb allows: "
        "raise it, or name fewer files"
    )


def _filesystem(scheme: str) -> Any:
    import fsspec

    return fsspec.filesystem(scheme)


@contextmanager
def _explained(remote: Remote) -> Iterator[None]:
    """Turn what libraries raise into errors of ours; that nothing is there stays as it is."""
    try:
        yield
    except OpdError:
        raise
    except ABSENT as error:
        behind = error.__cause__  # fsspec says so of a web server too that nobody answers at
        if isinstance(behind, OSError) and not isinstance(behind, ABSENT):
            raise _unreached(remote, behind) from error
        raise
    except MISUSED as error:
        raise ConfigError(
            f"{remote.key} = {shown(remote.url)} cannot be read: {_words(error)}. Correct the URL, "
            f"or install the library that reads {remote.scheme}://"
        ) from error
    except Exception as error:  # of any HTTP library
        if disk_fault(error):
            raise
        raise _unreached(remote, error) from error


def _unreached(remote: Remote, error: Exception) -> StorageError:
    return StorageError(
        f"{remote.key}: {remote.url} cannot be read now: {_words(error)}. Connect and run the same "
        "command again, or download the file and give its path"
    )


def _words(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return excerpt(without_secrets(text), 200) or type(error).__name__
