"""States of the learner in the store: whole or not there, deleted only where nobody needs them."""

import hashlib
import json
import pickle
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.learner.ranks import Ranks
from pipeline.learner.states import drop_states, find_state, misfit
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from schemas.config.train import TrainSection
from schemas.errors import DataError
from schemas.records.seal import opened, with_seal
from schemas.records.shards import Shard
from schemas.records.training import StateManifest
from tests.support.forged import forged
from tests.support.minimal import minimal_run
from tests.support.paperrun import put
from tests.support.runs import Cli

PART = "zero_pp_rank_{}_mp_rank_00_optim_states.json"
OLD = "runs/demo/rounds/0000/train/commits/step-000001-old.json"
NEW = "runs/demo/rounds/0000/train/commits/step-000002-new.json"
NOWHERE = "runs/demo/rounds/0000/train/commits/step-000003.json"
A, B, C = "0", "1", "2"
BAD_NAMES = (
    *("", "x", "../x.json", "/etc/x.json", "a/b.json", ".", "state/../mp_rank_00_model_states.pt"),
    *("mp_rank_00_model_states.json\n", "mp_rank_00_model_states.json\x1b[2J", "a\\b.json"),
    *("mp_rank_00_model_states.py", "mp_rank_00_model_states.pt", "../zero_to_fp32.py"),
    "mp_rank_０0_model_states.json",
)

IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "step": (-1, 1.5, "x", None, 1 << 63),
    "world_size": (0, -1, 1 << 40),
    "zero_stage": (-1, 4),
    "dtype": ("float16", "", None, "float32\n"),
    "plan": ("", "a b", 1, "x" * 65),
    "decayed": ("", "norms", None),
    "steps": ([{"loss": "NaN"}], [{"loss": "x"}], [{"loss": []}], None, [1]),
}
"""Field of a state → values that none can have."""


def state(*files: str, step: int = 1) -> StateManifest:
    return StateManifest(
        step=step,
        world_size=2,
        zero_stage=1,
        dtype="float32",
        steps=(),
        optimizer_restarted=False,
        files={PART.format(name): shard(name) for name in files},
    )


def shard(name: str) -> Shard:
    digest = hashlib.sha256(name.encode()).hexdigest()
    key = f"runs/demo/state/{digest}.json"
    return Shard(key=key, sha256=digest, bytes=1, rows=0, tokens=0)


@pytest.fixture
def run(memory: Storage) -> Run:
    """Return a run with two states that share a file."""
    made = minimal_run(memory)
    for name in (A, B, C):
        memory.put(shard(name).key, b"1")
    put(made, OLD, state(A, B))
    put(made, NEW, state(B, C, step=2))
    return made


def left(run: Run) -> set[str]:
    """Return the names of the files that are left."""
    there = run.storage.names("runs/demo/state")
    return {name for name in (A, B, C) if Path(shard(name).key).name in there}


def test_a_state_is_found_while_all_its_files_are_there(run: Run) -> None:
    assert find_state(run, OLD) == state(A, B)
    run.storage.delete(shard(B).key)
    assert find_state(run, OLD) is find_state(run, NEW) is None


def test_no_key_and_no_record_are_no_state(run: Run) -> None:
    assert find_state(run, None) is find_state(run, NOWHERE) is None


def test_dropping_a_state_keeps_the_files_of_those_that_are_kept(run: Run) -> None:
    drop_states(run, [OLD, NOWHERE], keep=[NEW])
    assert left(run) == {B, C}
    assert run.storage.exists(OLD)
    assert find_state(run, NEW) == state(B, C, step=2)
    drop_states(run, [OLD, NEW], keep=[])
    assert left(run) == set()


def test_what_is_kept_and_dropped_alike_is_kept(run: Run) -> None:
    drop_states(run, [OLD, NEW], keep=[OLD])
    assert left(run) == {A, B}


def test_a_record_that_names_what_is_not_of_its_run_deletes_nothing(run: Run) -> None:
    run.storage.put("cache/s/data/x.parquet", b"1")
    for key in ("cache/s/data/x.parquet", shard(A).key + "x"):
        named = shard(A).model_copy(update={"key": key})
        put(run, OLD, state(A).model_copy(update={"files": {PART.format(A): named}}))
        with pytest.raises(DataError, match="step-000001-old"):
            drop_states(run, [OLD], keep=[])
        with pytest.raises(DataError, match="step-000001-old"):
            find_state(run, OLD)
    assert run.storage.exists("cache/s/data/x.parquet")


@pytest.mark.parametrize("key", ["../x.json", "runs/other/x.json", "runs/demo/../x.json", "", "/x"])
def test_a_checkpoint_can_name_no_state_of_another_run(run: Run, key: str) -> None:
    with pytest.raises(DataError, match="not of run demo"):
        find_state(run, key)


@pytest.mark.parametrize(
    "fields",
    [
        *({"files": {name: shard("0").model_dump()}} for name in BAD_NAMES),
        {"files": {PART.format(0): {**shard("0").model_dump(), "bytes": 1 << 40}}},
        *({name: value} for name, values in IMPOSSIBLE.items() for value in values),
        {"schema_version": 99},
        {"more": 1},
    ],
)
def test_a_record_with_impossible_fields_is_damaged(run: Run, fields: dict[str, Any]) -> None:
    words = json.loads(state(A).to_bytes())
    run.storage.put(OLD, forged({**words, **fields}))
    with pytest.raises(DataError, match=r"step-000001-old\.json"):
        find_state(run, OLD)


def test_a_state_without_files_cannot_be_loaded() -> None:
    train = TrainSection.model_validate({"learning_rate": 1e-3, "sequences_per_step": 1})
    why = misfit(state(), train, Ranks(rank=0, local_rank=0, count=2, device="cpu"))
    assert why == "it names no files"


def test_a_record_with_steps_that_are_no_numbers_is_damaged(run: Run) -> None:
    for value in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        text = opened(state(A).to_bytes()).text
        steps = b'"steps":[{"loss":' + value + b"}]"
        run.storage.put(OLD, with_seal(text.replace(b'"steps":[]', steps)))
        with pytest.raises(DataError, match=r"no number|too large|steps\.0\.loss"):
            find_state(run, OLD)


@pytest.mark.parametrize(
    ("processes", "stage", "dtype", "reason"),
    [
        (2, 1, "float32", None),
        (4, 1, "float32", "processes 2 → 4"),
        (2, 3, "float32", "zero_stage 1 → 3"),
        (2, 1, "bfloat16", "dtype float32 → bfloat16"),
        (1, 0, "float32", "processes 2 → 1, zero_stage 1 → 0"),
    ],
)
def test_a_state_fits_the_learner_that_it_was_saved_by(
    processes: int, stage: int, dtype: str, reason: str | None
) -> None:
    train = TrainSection.model_validate(
        {"learning_rate": 1e-3, "sequences_per_step": 1, "zero_stage": stage, "dtype": dtype}
    )
    assert (
        misfit(state(A), train, Ranks(rank=0, local_rank=0, count=processes, device="cpu"))
        == reason
    )


def test_a_state_of_other_weights_that_decay_does_not_fit() -> None:
    ranks = Ranks(rank=0, local_rank=0, count=2, device="cpu")
    words = {"learning_rate": 1e-3, "sequences_per_step": 1, "zero_stage": 1, "weight_decay": 0.1}
    train = TrainSection.model_validate(words)
    assert misfit(state(A), train, ranks) == "weights that decay all → matrices"
    assert misfit(state(A), train.model_copy(update={"decay_all": True}), ranks) is None
    of_now = state(A).model_copy(update={"decayed": "matrices"})
    assert misfit(of_now, train, ranks) is None


# --- what somebody put in the place of a state ---


def malicious(mark: Path) -> bytes:
    """Return a pickle that makes a file where it is read."""
    return b"cposix\nsystem\n(V" + f"touch {shlex.quote(str(mark))}".encode() + b"\ntR."


def test_such_a_pickle_does_run_where_it_is_read(tmp_path: Path) -> None:
    pickle.loads(malicious(tmp_path / "ran"))
    assert (tmp_path / "ran").exists()


def untrain(folder: Path) -> Path:
    """Forget the second round's training; return the record of the state that it begins with."""
    tiny = folder / "store/runs/tiny"
    for key in ("rounds/0001/train", "rounds/0001/eval", "checkpoints/0002"):
        shutil.rmtree(tiny / key)
    return max((tiny / "rounds/0000/train/commits").iterdir())


def replace_files(folder: Path, record: Path, data: bytes, names: dict[str, str]) -> None:
    """Put bytes in the place of a state's files, under other names, with digests that are right."""
    words = json.loads(record.read_text())
    digest, files = hashlib.sha256(data).hexdigest(), {}
    for name, found in words["files"].items():
        ending = names.get(name, name).split(".")[-1]
        key = f"runs/tiny/state/{digest}.{ending}"
        (folder / "store" / key).write_bytes(data)
        files[names.get(name, name)] = {**found, "key": key, "sha256": digest, "bytes": len(data)}
    record.write_bytes(forged({**words, "files": files}))


def older_names(record: Path) -> dict[str, str]:
    """Return what an older opd called the files of a state."""
    names = json.loads(record.read_text())["files"]
    return {name: f"state/{Path(name).stem}.pt" for name in names}


def test_pickles_in_the_place_of_a_states_files_are_not_run(run_copy: Path, cli: Cli) -> None:
    mark, record = run_copy / "ran", untrain(run_copy)
    replace_files(run_copy, record, malicious(mark), {})
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "1")
    assert outcome.code == 4, outcome.stderr
    assert "model_states.json" in outcome.stderr and "delete its file" in outcome.stderr
    assert not mark.exists()


def test_a_state_of_an_older_opd_is_not_read_and_its_round_goes_on(
    run_copy: Path, cli: Cli
) -> None:
    mark, record = run_copy / "ran", untrain(run_copy)
    names = {
        name: f"state/{Path(name).stem}.pt" for name in json.loads(record.read_text())["files"]
    }
    replace_files(run_copy, record, malicious(mark), names)
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "1", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "an older opd stored it as pickles" in outcome.stderr
    trained = run_copy / "store/runs/tiny/rounds/0001/train/manifest.json"
    assert json.loads(trained.read_text())["optimizer_restarted"] is True
    assert not mark.exists()


def test_a_round_that_an_older_opd_began_is_begun_anew(run_copy: Path, cli: Cli) -> None:
    tiny = run_copy / "store/runs/tiny"
    first = min((tiny / "rounds/0001/train/commits").iterdir())
    kept = first.read_bytes()
    untrain(run_copy)
    first.parent.mkdir(parents=True)
    first.write_bytes(kept)
    replace_files(run_copy, first, malicious(run_copy / "ran"), older_names(first))
    result = cli.ok("train", "-c", run_copy / "run.toml", "--round", "1")
    assert result["units"] == result["steps"] == 2
    assert not (run_copy / "ran").exists()
    assert all("pt" not in name.split(".") for name in json.loads(first.read_text())["files"])


def begun(folder: Path, **changes: Any) -> Path:
    """Forget the second round's training but its last state, which is changed; return it."""
    last = max((folder / "store/runs/tiny/rounds/0001/train/commits").iterdir())
    words = json.loads(last.read_text())
    untrain(folder)
    last.parent.mkdir(parents=True)
    assert words["plan"]
    kept = {k: v for k, v in {**words, **changes}.items() if v is not None}
    last.write_bytes(forged(kept))
    return last


def test_a_state_of_other_steps_is_told_and_its_round_begun_anew(run_copy: Path, cli: Cli) -> None:
    last = begun(run_copy, plan="other")
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "1", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "cannot be used: another opd saved it, which cut the round into" in outcome.stderr
    assert json.loads(outcome.stdout)["units"] == 2
    assert json.loads(last.read_text())["plan"] not in (None, "other")


def test_a_state_of_other_rewards_is_told_and_its_round_begun_anew(
    run_copy: Path, cli: Cli
) -> None:
    last = begun(run_copy, inputs="other")
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "1", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "it was trained on other rewards or scores than the round has now" in outcome.stderr
    assert json.loads(outcome.stdout)["units"] == 2
    assert json.loads(last.read_text())["inputs"] not in (None, "other")


def test_a_state_of_an_older_opd_goes_on_where_the_steps_are_the_same(
    run_copy: Path, cli: Cli
) -> None:
    begun(run_copy, plan=None, inputs=None)
    result = cli.ok("train", "-c", run_copy / "run.toml", "--round", "1")
    assert (result["units"], result["steps"]) == (0, 2)
