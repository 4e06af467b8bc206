"""Round 0 of a tiny run: its stages, and what to delete as if they had not run."""

import json
import shutil
from pathlib import Path

from tests.support.runs import Cli

ROUND = "runs/tiny/rounds/0000"


def stages(cli: Cli, config: Path, *names: str) -> None:
    """Run stages of round 0 that must succeed."""
    for name in names:
        cli.ok(name, "-c", config, "--round", "0")


def forget(folder: Path, *keys: str) -> None:
    """Delete objects of a folder's store, as if the stages had not run."""
    for key in keys:
        path = folder / "store" / key
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def forget_training(folder: Path) -> None:
    """Delete what training of round 0 and everything after it left."""
    later = ["runs/tiny/rounds/0001", f"{ROUND}/train", f"{ROUND}/eval"]
    forget(folder, *later, "runs/tiny/checkpoints/0001", "runs/tiny/checkpoints/0002")


def score_shards(folder: Path) -> list[Path]:
    """Return the score shards that round 0 uses."""
    manifest = json.loads((folder / "store" / ROUND / "score/main/manifest.json").read_text())
    return [folder / "store" / unit["shard"]["key"] for unit in manifest["units"]]
