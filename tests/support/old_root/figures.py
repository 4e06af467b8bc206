"""What results and records say that is the same on every machine: names and counts.

Numbers that rounding may change are left out, and so are digests of what holds such numbers.
Promises: the standard library only, for `make.py` uses this beside the code of another commit.
"""

import json
import re
from pathlib import Path
from typing import Any

KEPT = (
    *("run", "round", "stage", "teacher", "scorer", "unit", "index", "origin", "subject"),
    *("rows", "tokens", "reused_rows", "teacher_tokens", "sampled_tokens", "paid_by"),
    *("step", "first_step", "stale_rows", "untrained_rows", "optimizer_restarted"),
    *("world_size", "zero_stage", "dtype", "policy_version_in", "state", "complete"),
)
"""Fields that no rounding changes."""


def objects(root: Path) -> dict[str, bytes]:
    """Return every object of a root that is a folder, by key."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def of_new_records(before: dict[str, bytes], after: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return the figures of the commits and manifests that came to a root, by key.

    Args:
        before: all objects that were there.
        after: all objects that are there.
    """
    added = [key for key in after if key not in before and is_record(key)]
    return {key: of_record(json.loads(after[key]), graded="/eval/" in key) for key in added}


def other_new_keys(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Return the keys of all else that came to a root, without digests, each once.

    Args:
        before: all objects that were there.
        after: all objects that are there.
    """
    return sorted({masked(key) for key in after if key not in before and not is_record(key)})


def is_record(key: str) -> bool:
    """Return whether a key is that of a commit or a manifest."""
    return "/commits/" in key or key.endswith("/manifest.json")


def of_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of what a command said it did."""
    return {**of_record(result, graded=result["stage"] == "eval"), "units": result["units"]}


def of_record(record: dict[str, Any], *, graded: bool = False) -> dict[str, Any]:
    """Return the figures of a record.

    Args:
        record: the record.
        graded: whether its tokens were sampled by weights that were trained since.
    """
    found = {name: record[name] for name in KEPT if name in record}
    if graded:
        found.pop("tokens", None)
    if "shard" in record:
        found["shard"] = of_record(record["shard"], graded=graded)
    if isinstance(record.get("units"), list):
        found["units"] = [of_record(unit, graded=graded) for unit in record["units"]]
    if "files" in record:
        found["files"] = sorted(masked(name) for name in record["files"])
    if "steps" in record:
        steps = record["steps"]
        found["steps"] = len(steps) if isinstance(steps, list) else steps
    return found


def masked(name: str) -> str:
    """Return a name without digests."""
    return re.sub(r"[0-9a-f]{16,64}\b", "*", name)
