"""Folders of prompt files: which of their files count, in which order. Pure."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

EXPECTED = f"a file that ends in {', '.join(EXTENSIONS)}, or a folder of such files"

UNSEEN = (".", "_")
"""How the names begin of files that programs leave beside their data."""


def is_prompt_file(name: str) -> bool:
    """Return whether a name is that of a prompt file."""
    return name.endswith(EXTENSIONS)


def names_folder(location: str) -> bool:
    """Return whether a URL is that of a folder, as far as it tells."""
    name = location.rstrip("/").rpartition("/")[2]
    return location.endswith("/") or "." not in name or "*" in name


def chosen(names: Iterable[str], pattern: str = "*") -> list[str]:
    """Return the prompt files among names, sorted, of those that a pattern allows."""
    return sorted(
        name
        for name in names
        if is_prompt_file(name) and not name.startswith(UNSEEN) and fnmatchcase(name, pattern)
    )


def split_pattern(location: str) -> tuple[str, str]:
    """Return a folder, and the pattern of the names in it that count."""
    folder, _, name = location.rpartition("/")
    return (folder, name) if "*" in name else (location.rstrip("/"), "*")
