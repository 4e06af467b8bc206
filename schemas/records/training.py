"""Records of the learner: states, checkpoints, trained rounds."""

from typing import Any

from schemas.forms import Count, FileName, Key, Mark, Real, Words
from schemas.keys import checkpoint_folder, manifest_key, metrics_folder, owner, stage_folder
from schemas.records.record import Versioned
from schemas.records.shards import Shard


class StateManifest(Versioned):
    """A resumable state of the learner: DeepSpeed's files at one optimizer step."""

    step: Count
    """Optimizer steps of the whole run so far."""
    world_size: Count
    zero_stage: Count
    dtype: Words
    steps: tuple[dict[Words, Real | None], ...]
    """Metrics of the round's steps so far."""
    optimizer_restarted: bool
    files: dict[str, Shard]


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
    files: dict[FileName, Shard]
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

    LATER = frozenset({"rollout_kl"})
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
