"""Bad records and objects of a root."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.badcases import found
from tests.support.forged import forged

RUN = "store/runs/tiny"
FIRST, SECOND = f"{RUN}/rounds/0000", f"{RUN}/rounds/0001"
ROLLOUT, SCORES = "rollout/manifest.json", "score/main/manifest.json"
COMMIT = "store/cache/*/commits/*.json"


def edit(folder: Path, pattern: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first JSON object that a pattern names."""
    path = found(folder, pattern)
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(forged(value))


def sums(manifest: dict[str, Any]) -> None:
    """Make a manifest say what its units have."""
    for name in ("rows", "tokens"):
        manifest[name] = sum(unit["shard"][name] for unit in manifest["units"])


# --- JSON ---


def deep_manifest(folder: Path) -> None:
    (folder / FIRST / "eval/manifest.json").write_text("[" * 200_000)


def endless_number(folder: Path) -> None:
    (folder / FIRST / "eval/manifest.json").write_text('{"rows": ' + "7" * 100_000 + "}")


def deep_plan(folder: Path) -> None:
    path = folder / FIRST / "rollout/plan.json"
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def huge_plan(folder: Path) -> None:
    with (folder / FIRST / "rollout/plan.json").open("wb") as file:
        file.truncate((64 << 20) + 1)


# --- digests ---


def flip(folder: Path, pattern: str, before: bytes) -> None:
    """Flip the last bit of the character that follows some bytes."""
    path = found(folder, pattern)
    data = bytearray(path.read_bytes())
    data[data.index(before) + len(before)] ^= 1
    path.write_bytes(data)


def flipped_accuracy(folder: Path) -> None:
    flip(folder, f"{FIRST}/eval/manifest.json", b'"accuracy":0.')


def flipped_version(folder: Path) -> None:
    flip(folder, f"{RUN}/run.json", b'"torch":"')


def flipped_payer(folder: Path) -> None:
    flip(folder, COMMIT, b'"paid_by":"')


def flipped_key(folder: Path) -> None:
    """Let a manifest name prompts of another digest, as if the right ones were named nowhere."""
    flip(folder, f"{RUN}/prompts/train/manifest.json", b'"key":"prompts/')


def indented(folder: Path) -> None:
    path = folder / FIRST / "eval/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))


# --- manifests ---


def rollout_as_eval(folder: Path) -> None:
    shutil.copy(folder / FIRST / ROLLOUT, folder / FIRST / "eval/manifest.json")


def null_accuracy(folder: Path) -> None:
    """Write what an older opd wrote of a reward that is no number."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["accuracy"] = None

    edit(folder, f"{FIRST}/eval/manifest.json", change)


def lost_unit(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        del manifest["units"][-1]
        sums(manifest)

    edit(folder, f"{SECOND}/{ROLLOUT}", change)


def unit_twice(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["units"][1] = manifest["units"][0]
        sums(manifest)

    edit(folder, f"{FIRST}/{ROLLOUT}", change)


def units_swapped(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["units"].reverse()

    edit(folder, f"{FIRST}/{ROLLOUT}", change)


def shard_twice(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["units"][1]["shard"] = manifest["units"][0]["shard"]
        sums(manifest)

    edit(folder, f"{FIRST}/{ROLLOUT}", change)


def fewer_scored(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["units"][0]["shard"]["rows"] -= 1
        sums(manifest)

    edit(folder, f"{SECOND}/{SCORES}", change)


def unscored_unit(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        del manifest["units"][-1]
        sums(manifest)

    edit(folder, f"{SECOND}/{SCORES}", change)


def copied_commit(folder: Path) -> None:
    commits = folder / FIRST / "rollout/commits"
    shutil.copy(commits / "u00000.json", commits / "u00001.json")


def round_copied(folder: Path) -> None:
    shutil.rmtree(folder / SECOND)
    shutil.copytree(folder / FIRST, folder / SECOND)


def run_copied(folder: Path) -> None:
    shutil.copytree(folder / RUN, folder / "store/runs/thief")


# --- checkpoints ---


def file_renamed(folder: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("tokenizer.json")

    edit(folder, f"{RUN}/checkpoints/0001/manifest.json", change)
    (folder / SECOND / "train/manifest.json").unlink()


def climbing_file(folder: Path) -> None:
    file_renamed(folder, "../../evil")


def absolute_file(folder: Path) -> None:
    file_renamed(folder, "/tmp/evil")


def stray_file(folder: Path) -> None:
    file_renamed(folder, "merges.txt")


# --- caches ---


def of_shard(folder: Path) -> Path:
    return found(folder, "store/cache/*/data/*.parquet")


def cut_shard(folder: Path) -> None:
    path = of_shard(folder)
    path.write_bytes(path.read_bytes()[:-9])


def empty_shard(folder: Path) -> None:
    of_shard(folder).write_bytes(b"")


def grown_shard(folder: Path) -> None:
    with of_shard(folder).open("ab") as file:
        file.truncate(1 << 30)


def other_shard(folder: Path) -> None:
    one, other = sorted(folder.glob("store/cache/*/data/*.parquet"))[:2]
    shutil.copy(other, one)


def stray_commit_file(folder: Path) -> None:
    commits = found(folder, COMMIT).parent
    (commits / ".DS_Store").write_bytes(b"\x00\x00")
    (commits / "note\n.json").write_text("{}")


def cached_elsewhere(folder: Path) -> None:
    def change(commit: dict[str, Any]) -> None:
        commit["shard"]["key"] = f"rollouts/{commit['shard']['sha256']}.parquet"

    edit(folder, COMMIT, change)


def renamed_unit(folder: Path) -> None:
    path = found(folder, COMMIT)
    commit = json.loads(path.read_text()) | {"unit": "0" * 32}
    path.unlink()
    (path.parent / f"{'0' * 32}.json").write_bytes(forged(commit))


def rollout_as_scores(folder: Path) -> None:
    """Name a shard of rollouts, under its right name, where scores should be."""
    data = found(folder, "store/rollouts/*.parquet").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    cache = found(folder, "store/cache/*")
    (cache / "data" / f"{digest}.parquet").write_bytes(data)

    def change(commit: dict[str, Any]) -> None:
        key = f"cache/{cache.name}/data/{digest}.parquet"
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
        commit["shard"] |= {"key": key, "sha256": digest, "bytes": len(data), "rows": rows}

    edit(folder, COMMIT, change)


def renumbering(folder: Path, name: str, data: bytes) -> None:
    path = found(folder, "store/cache/*") / "renumbering" / name
    path.parent.mkdir()
    path.write_bytes(data)


def bad_renumbering(folder: Path) -> None:
    renumbering(folder, hashlib.sha256(b"evil").hexdigest(), b"evil")


def misnamed_renumbering(folder: Path) -> None:
    renumbering(folder, "0" * 64, (20).to_bytes(4, "little"))


def nameless_scorer(folder: Path) -> None:
    commits = folder / "store/cache/0-not-a-scorer/commits"
    commits.mkdir(parents=True)
    (commits / "u00000.json").write_text("{}")
