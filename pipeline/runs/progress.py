"""Who is told of the progress of long work, such as a bar."""

from typing import Protocol


class Progress(Protocol):
    """Receiver of progress, such as a bar."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Begin a stage of `total` units of which `done` are done."""

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count finished units and tokens."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def stop(self) -> None:
        """End the stage."""
