"""Bad places for a configuration, which data does not say: pipes, devices, links, endless files."""

import os
from pathlib import Path

MIB = 1 << 20


def pipe(folder: Path) -> None:
    """Make a pipe, which nobody writes to, of run.toml."""
    (folder / "run.toml").unlink()
    os.mkfifo(folder / "run.toml")


def circle(folder: Path) -> None:
    """Make links that lead in a circle, beside run.toml."""
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")


def endless(folder: Path) -> None:
    """Make run.toml 100 MiB long, most of it a hole."""
    with (folder / "run.toml").open("ab") as file:
        file.truncate(100 * MIB)


def many_mistakes(folder: Path) -> None:
    """Make run.toml have thousands of unknown keys."""
    with (folder / "run.toml").open("a") as file:
        file.writelines(f"key{index} = {index}\n" for index in range(5000))


def dotted(folder: Path) -> None:
    """Make run.toml have a key of 40,000 parts."""
    (folder / "run.toml").write_text("a." * 40_000 + "a = 1\n")


def nested(folder: Path) -> None:
    """Make run.toml have 50,000 lists inside each other."""
    (folder / "run.toml").write_text("a = " + "[" * 50_000 + "]" * 50_000 + "\n")


def dangling(folder: Path) -> None:
    """Make run.toml a link to a file that is gone."""
    (folder / "run.toml").unlink()
    (folder / "run.toml").symlink_to("gone.toml")
