"""Where the repository is, for tests that run its programs or read its files."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
