"""Places that a text may name: a path of this machine, or a URL of a store. Pure.

Promises: one reading for roots, configurations, prompts and models. A URL that holds a user, a
password or parameters is refused and never repeated. Nothing is guessed: what is half a URL, or
lies outside of what it names, is refused.
"""

import re
from dataclasses import dataclass

from schemas.foreign import HIDDEN, may_be_secret, shown

SCHEMES = ("file", "s3", "memory")

MISTAKEN = (*SCHEMES, "http", "https", "s3a", "s3n", "gs", "gcs", "az", "abfs", "hdfs", "ftp", "hf")
"""Schemes that people mean where they forget one of the slashes."""

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}|arn:[A-Za-z0-9:_-]+")

REMOTE = re.compile(r"[a-z][a-z0-9+.-]{0,19}")
"""Schemes of other libraries, as fsspec writes them."""

EXPECTED = "use a path, file://… or s3://bucket/prefix"


@dataclass(frozen=True)
class Location:
    """A place: a path where `scheme` is empty, else a URL."""

    scheme: str
    host: str
    """Bucket of `s3://`, name of `memory://`; else empty."""
    path: str
    """Path, or what follows the host, with its slash."""

    @property
    def is_local(self) -> bool:
        """Return whether the place is on a disk of this machine."""
        return self.scheme in ("", "file")

    @property
    def url(self) -> str:
        """Return the place as text again."""
        return f"{self.scheme}://{self.host}{self.path}" if self.scheme else self.path


def parse_location(text: str) -> Location:
    """Return the place that a text names.

    Raises:
        ValueError: it names none; the message repeats no secret.
    """
    if not text.strip():
        raise ValueError(f"it is empty; {EXPECTED}")
    if "\0" in text:
        raise ValueError(f"{shown(text)} has a NUL character, which no path may have")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Location("", "", _checked_path(text))
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        named = (
            f"scheme {shown(scheme)}" if re.fullmatch(r"[\w+.-]{1,20}", scheme) else "its scheme"
        )
        raise ValueError(f"{named} is not supported; {EXPECTED}")
    host, slash, path = rest.partition("/")
    _check_url(scheme, host, f"{slash}{path}")
    return Location(scheme, "" if scheme == "file" else host, f"{slash}{path}")


def is_remote(text: str) -> bool:
    """Return whether a text is the URL of a place that is only read from, by a library of its own.

    `https://…`, `hf://…` and the like; not the stores, whose schemes are ours.
    """
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() not in SCHEMES


def check_source(text: str) -> None:
    """Make sure that a text names a place to read from: a path, or the URL of a store or a service.

    Raises:
        ValueError: it names none; the message repeats no secret.
    """
    if not is_remote(text):
        parse_location(text)
        return
    scheme, _, rest = text.partition("://")
    if not REMOTE.fullmatch(scheme):
        raise ValueError(f"its scheme is none; {EXPECTED}, hf://datasets/owner/name/file")
    host = rest.partition("/")[0]
    if "?" in rest or "#" in rest or "@" in host or re.search(r":(?!\d+$)", host):
        raise ValueError(
            "it is a URL with a user, a password or parameters, which is not repeated. Credentials "
            "come from the environment, as the library of its scheme reads them"
        )
    if "::" in rest or not rest.strip("/") or "\0" in rest:
        raise ValueError(f"{shown(text)} names no file or folder of one service")
    if {".", ".."} & set(rest.split("/")):
        raise ValueError(f"a URL has no . and .. between its slashes ({shown(rest)})")


def _checked_path(text: str) -> str:
    head, colon, rest = text.partition(":")
    if colon and head.lower() in MISTAKEN:
        found = HIDDEN if "@" in text or may_be_secret(text) else shown(text)
        raise ValueError(f"{head}: is half a URL ({found}); {EXPECTED}")
    return text


def _check_url(scheme: str, host: str, path: str) -> None:
    if "@" in host or "?" in host + path or "#" in host + path or _has_password(scheme, host):
        raise ValueError(
            "it is a URL with a user, a password or parameters, which is not repeated. Credentials "
            "come from AWS_* variables only; write s3://bucket/prefix"
        )
    if scheme == "file":
        if host not in ("", "localhost") or not path.strip("/"):
            raise ValueError(
                f"file://{shown(host)[1:-1]}{path[:80]} is not the URL of a path: it has three "
                "slashes, as in file:///data/opd"
            )
    elif not host:
        raise ValueError(f"{scheme}:// names no bucket; write s3://bucket/prefix")
    elif not BUCKET.fullmatch(host):
        raise ValueError(f"{shown(host)} is no name of a bucket; write s3://bucket/prefix")
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"a URL has no . and .. between its slashes ({shown(path)})")


def _has_password(scheme: str, host: str) -> bool:
    """Return whether what stands for a bucket is a user, cut where its password has a slash."""
    return ":" in host and not BUCKET.fullmatch(host)
