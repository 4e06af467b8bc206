"""Make `root.tar.xz` and `expected.json`: a root that the code of commit 4a2af35 wrote.

    git worktree add ../opd-old 4a2af35 && cd ../opd-old
    PYTHONPATH=. ../opd/.venv/bin/python ../opd/tests/support/old_root/make.py

The archive holds three TOMLs, their prompts and tiny models, and the root `store`:

- run `old`: baselines; round 0 whole; round 1 sampled, and its scoring killed after 5 of 16 units.
  A sixth is in the sequence index and has no commit, and its lease is still there;
- the teacher's scorer, typed and pinned, and the scorer `packed`, reprocessed from it. Both have
  top-k cut by mass, tail buckets, candidates and draws, a merged index and units that are not
  merged yet;
- runs `packed`, which learns from that scorer, and `cut`, which has the teacher's scores in other
  units: round 0 sampled.

`expected.json` has what the old commands said of it, and what results and records said once the
old code had gone on to the end. No path and no name of a machine is in either file. Made again,
both are another root: attempts, times and the units that were scored before the kill differ.
"""

import importlib
import io
import json
import lzma
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

COMMIT = "4a2af35"
HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SCORED_UNITS = 5
"""Units of round 1 that are scored when the stage is killed."""

KILLED = f"""
import os, signal
import cli.main, pipeline.cache, pipeline.lease
create, made = pipeline.cache.create_record, []
def dying(storage, key, record):
    if len(made) == {SCORED_UNITS}:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(key)
    return create(storage, key, record)
pipeline.cache.create_record = dying
pipeline.lease.machine = lambda: "a machine that is gone"
cli.main.main()
"""
"""The command line, which is killed between a unit's entry in the index and its commit."""

SMALL: dict[str, Any] = {"hidden": 16, "layers": 1, "head_dim": 8}
OLD: dict[str, object] = {
    "run.name": "old",
    "rollout.candidates": 2,
    "rollout.prompts_per_unit": 1,  # as many units as the index merges
    "score.top_p": 0.95,
    "score.tail_buckets": 4,
    "score.draws": 3,
    "train.save_steps": 1,
}
PACKED = {"run.name": "packed", "teachers.main.scores": "packed", "eval": None}
CUT = {"run.name": "cut", "rollout.prompts_per_unit": 3, "eval": None}


def main() -> None:
    """Make both files beside this one."""
    require_old_code()
    with tempfile.TemporaryDirectory(prefix="opd-old-root-") as name:
        folder = Path(name)
        begin(folder)
        require_no_place(folder)
        data = archive(folder)
        expected = {"before": say(folder), "after": go_on(folder)}
    (HERE / "root.tar.xz").write_bytes(data)
    text = json.dumps(expected, indent=1, sort_keys=True) + "\n"
    (HERE / "expected.json").write_text(text)
    print(f"root.tar.xz: {len(data):,} bytes; expected.json: {len(text):,}")


def require_old_code() -> None:
    """Make sure that the code is that of the commit, in the folder that this is started in."""
    head = ("git", "rev-parse", "HEAD")
    found = subprocess.run(head, capture_output=True, text=True, check=True).stdout
    assert found.startswith(COMMIT), found
    place = importlib.import_module("pipeline").__file__
    assert place is not None
    assert Path(place).resolve().parent.parent == Path.cwd(), place


def begin(folder: Path) -> None:
    """Write the runs, and let the old code do the first part of them."""
    tiny: Any = importlib.import_module("tests.tiny")
    tiny.make_model(folder / "student", seed=0, **SMALL)
    tiny.make_model(folder / "main", seed=1, teacher=True, **SMALL)
    tiny.write_run(folder, root="store", changes=OLD)
    tiny.write_run(folder, root="store", changes=OLD | PACKED, file="packed.toml")
    tiny.write_run(folder, root="store", changes=OLD | CUT, file="cut.toml")
    opd(folder, "eval", "--baseline")
    for stage in ("rollout", "score", "train", "eval"):
        opd(folder, stage, "--round", "0")
    opd(folder, "rollout", "--round", "1")
    arguments = ("score", "-c", "run.toml", "--round", "1", "--json")
    killed = start("-c", KILLED, *arguments, folder=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    opd(folder, "cache", "pin", teachers_scorer(folder), "--note", "an old one")
    opd(folder, *packing(folder))
    for config in ("packed.toml", "cut.toml"):
        opd(folder, "rollout", "--round", "0", config=config)


def say(folder: Path) -> dict[str, Any]:
    """Return what the old commands say of the root."""
    commands = {
        "status": ("status",),
        "ls": ("cache", "ls"),
        "verify": ("cache", "verify"),
        "gc": ("cache", "gc", "--older-than", "0"),
    }
    said = {name: opd(folder, *command) for name, command in commands.items()}
    for answer in said.values():
        del answer["root"]
    return said


def go_on(folder: Path) -> dict[str, Any]:
    """Let the old code go on to the end; return the figures of its results and new records."""
    figures = runpy.run_path(str(HERE / "figures.py"))
    before = figures["objects"](folder / "store")
    results = {
        "score": opd(folder, "score", "--round", "1"),
        "train": opd(folder, "train", "--round", "1"),
        "eval": opd(folder, "eval", "--round", "1"),
        "reprocess": opd(folder, *packing(folder)),
        "packed score": opd(folder, "score", "--round", "0", config="packed.toml"),
        "packed train": opd(folder, "train", "--round", "0", config="packed.toml"),
        "cut score": opd(folder, "score", "--round", "0", config="cut.toml"),
    }
    after = figures["objects"](folder / "store")
    return {
        "results": {name: figures["of_result"](result) for name, result in results.items()},
        "records": figures["of_new_records"](before, after),
        "other_keys": figures["other_new_keys"](before, after),
    }


def teachers_scorer(folder: Path) -> str:
    """Return the key of the scorer that is the teacher's own."""
    manifest = folder / "store/runs/old/rounds/0000/score/main/manifest.json"
    return str(json.loads(manifest.read_text())["scorer"])


def packing(folder: Path) -> tuple[str, ...]:
    """Return the command that reprocesses the teacher's scores."""
    source = ("--from", teachers_scorer(folder))
    return ("cache", "reprocess", *source, "--to", "packed", "--codec", "packed-v1")


def opd(folder: Path, *arguments: str, config: str = "run.toml") -> dict[str, Any]:
    """Run a command of the old code; return its result."""
    done = start("-m", "cli.main", *arguments, "-c", config, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def start(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python beside the TOMLs with the old code."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def require_no_place(folder: Path) -> None:
    """Make sure that no file names a folder of this machine."""
    names = (str(folder), str(Path.cwd()), str(Path.home()), sys.prefix)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found = [name for name in names if name.encode() in data]
        assert not found, f"{path}: {found}"


def archive(folder: Path) -> bytes:
    """Return a folder's files as an archive that depends on nothing but them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o644
            tar.addfile(entry, io.BytesIO(path.read_bytes()))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    main()
