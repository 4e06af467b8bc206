"""Records of the learner: states, checkpoints, trained rounds."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from schemas.forms import Count, FileName, Key, Mark, ModelFile, Real, Words
from schemas.keys import checkpoint_folder, manifest_key, metrics_folder, owner, stage_folder
from schemas.records.record import Record, Versioned
from schemas.records.shards import Shard

MAX_STATE_JSON = 64 << 20
"""Bytes of the largest JSON file of a state: names and shapes of a hundred thousand tensors."""

STATE_PART = r"(bf16_)?(zero_pp_rank_[0-9]{1,5}_)?mp_rank_[0-9]{2}_(model|optim)_states"
STATE_FILE = re.compile(rf"{STATE_PART}\.(json|safetensors)")
"""Names of a state's files: those of DeepSpeed, with endings of ours."""

PICKLED_FILE = re.compile(rf"[a-z]+/{STATE_PART}\.pt|zero_to_fp32\.py")
"""Names in states of an opd that stored DeepSpeed's own files; these are never read."""


def state_file(part: str, ending: Literal["json", "safetensors"]) -> str:
    """Return the name of a file of a state.

    Args:
        part: what DeepSpeed calls it, without an ending.
        ending: of tensors or of all else.

    Raises:
        ValueError: DeepSpeed calls it what no state has.
    """
    name = f"{part}.{ending}"
    if not STATE_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no file of a learner's state")
    return name


class StatePart(Record):
    """What one process keeps of a state, as JSON; tensors stand beside it and are named here."""

    schema_version: Literal[1] = 1
    tree: JsonValue


class StateManifest(Versioned):
    """A resumable state of the learner at one optimizer step."""

    LATER = frozenset({"plan", "decayed", "inputs"})
    step: Count
    """Optimizer steps of the whole run so far."""
    world_size: Annotated[int, Field(ge=1, le=99_999)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    dtype: Literal["float32", "bfloat16"]
    steps: tuple[dict[Words, Real | None], ...]
    """Metrics of the round's steps so far."""
    optimizer_restarted: bool
    files: dict[str, Shard]
    plan: Mark | None = None
    """Digest of which rows each step of its round trains; None where an older opd saved it."""
    decayed: Literal["matrices", "all"] = "all"
    """Weights that AdamW decays, in groups of which it keeps its sums; an older opd made one."""
    inputs: Mark | None = None
    """Digest of all that its round trains on; None where an older opd saved it."""

    @property
    def pickled(self) -> bool:
        """Return whether an older opd stored files that can run code when they are read."""
        return any(PICKLED_FILE.fullmatch(name) for name in self.files)

    @field_validator("files")
    @classmethod
    def _named(cls, files: dict[str, Shard]) -> dict[str, Shard]:
        for name, shard in files.items():
            if not (STATE_FILE.fullmatch(name) or PICKLED_FILE.fullmatch(name)):
                raise ValueError(f"{name!r} is no name of a learner's file")
            if name.endswith(".json") and shard.bytes > MAX_STATE_JSON:
                raise ValueError(f"{name} has {shard.bytes} bytes, more than {MAX_STATE_JSON}")
        return files


class CheckpointManifest(Versioned):
    """A Hugging Face folder, or one of a PEFT adapter, whose files are all present."""

    LATER = frozenset({"base"})
    index: Count | None
    """None: the base that the run's adapters belong to."""
    policy_version: Mark
    origin: dict[str, Any]
    """Where the weights come from: the imported model's identity, or run, round and step."""
    state: Key | None
    """Key of the learner's state that belongs to these weights."""
    files: dict[ModelFile, Shard]
    base: Mark | None = None
    """Policy version of the run's base, where the folder is that of an adapter."""

    def misplaced(self, key: str) -> str | None:
        """Return what it is of, where its key, or a file's, is not in the checkpoint's folder."""
        folder = checkpoint_folder(owner(key), self.index)
        if key != manifest_key(folder):
            return f"the manifest of checkpoint {self.index}"
        files = self.files.items()
        strays = [shard.key for name, shard in files if shard.key != f"{folder}/{name}"]
        if self.state is not None and owner(self.state) != owner(key):
            strays.append(self.state)
        return f"a manifest of another folder, for it names {strays[0]}" if strays else None


class TrainManifest(Versioned):
    """What trained a checkpoint, and from what."""

    LATER = frozenset({"rollout_kl", "skipped_steps", "gated", "reverse_kl", "reverse_kl_error"})
    run: FileName
    round: Count
    fingerprint: Mark
    policy_version_in: Mark
    policy_version_out: Mark
    shards: tuple[Key, ...]
    rows: Count
    stale_rows: Count
    """Rows left out because their policy lags more than `train.max_staleness` rounds."""
    untrained_rows: Count
    """Rows left out because no token of theirs is the student's own."""
    tokens: Count
    first_step: Count
    steps: Count
    optimizer_restarted: bool
    metrics: Shard
    summary: dict[Words, Real]
    """Means over the round's steps, weighted by tokens."""
    rollout_kl: Real | None = None
    """KL(what the rollout drew from ‖ the learner before its first step), nats per token: what the
    two engines disagree by. None where the rollout was tempered, cut or of an older student."""
    skipped_steps: Count = 0
    """Steps whose loss or gradient was no number, so that they changed nothing."""
    reverse_kl: Real | None = None
    """Of the student that sampled to its teachers, nats per token, where the rollout was tempered
    or cut: from the samples of the first step, weighed by q/μ before its update."""
    reverse_kl_error: Real | None = None
    """Its standard error, rows being independent."""
    gated: dict[Words, Count] = {}
    """Rows that `loss.gate` let distil: `whole`, in `part`, `none`; empty without gates."""

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: its steps are not those of its metrics."""
        if not self.metrics.is_in(metrics_folder(self.run)):
            return f"{self.metrics.key} holds no metrics of run {self.run}"
        rows = self.metrics.rows
        return None if rows == self.steps else f"it has {self.steps} steps and metrics of {rows}"

    def misplaced(self, key: str) -> str | None:
        """Return which round it trained, where its key is another one's."""
        home = manifest_key(stage_folder(self.run, self.round, "train"))
        return None if key == home else f"the training of round {self.round} of run {self.run}"
