"""The rewards of a round for the learner: found, held against the rollout, made into advantages."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.objectives.advantages import group_advantages
from pipeline.runs.run import Run
from pipeline.shards.rewards import read_rewards
from pipeline.store.records import check_fingerprint
from pipeline.store.storage import Storage
from schemas.columns import Floats
from schemas.config.evaluation import AdvantageKind
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.keys import GRADE
from schemas.records.rewards import RewardManifest
from schemas.records.runs import RolloutManifest


@dataclass(frozen=True)
class RewardInputs:
    """The rewards that a round trains on, and what becomes of them."""

    manifest: RewardManifest
    kind: AdvantageKind


@dataclass(frozen=True, eq=False)
class Advantages:
    """The advantages of a round's rows, numbered as in the rollout."""

    advantage_R: Floats
    """NaN where a row has no reward."""
    digests: pa.ChunkedArray
    """Sequence digest of each row."""

    def of(self, first: int, digests: pa.ChunkedArray, *, where: str) -> Floats:
        """Return the advantages of a unit.

        Args:
            first: number of its first row.
            digests: of its rows.
            where: what messages call it.

        Raises:
            DataError: they were given to other sequences.
        """
        stop = first + len(digests)
        if self.digests.slice(first, len(digests)).to_pylist() != digests.to_pylist():
            raise DataError(
                f"{where}: the rewards of its rows are of other sequences. Delete the round's "
                "reward manifest with the commits beside it, and run `opd grade` again"
            )
        return self.advantage_R[first:stop]


def find_rewards(run: Run, rollout: RolloutManifest) -> RewardInputs | None:
    """Return the rewards of a round; None where the configuration has no [reward].

    Raises:
        ConfigError: the round is not graded.
        IdentityError: it was graded by another grader, or another rollout was.
        DataError: not every row of every unit was.
    """
    section = run.config.reward
    if section is None:
        return None
    manifest, key = run.rewards(rollout.round), run.manifest_key(rollout.round, GRADE)
    if manifest is None:
        raise ConfigError(
            f"round {rollout.round} has no rewards: run `opd grade --round {rollout.round}` first, "
            "or take [reward] out of the configuration"
        )
    check_fingerprint(run.storage, key, manifest.rollout_fingerprint, rollout.fingerprint)
    found = {name: manifest.identity.get(name) for name in section.words()}
    if found != section.words():
        raise IdentityError(
            f"{run.storage.url(key)} has rewards by {found}, the configuration says "
            f"{section.words()}: run `opd grade --round {rollout.round} --again`, or undo that"
        )
    sizes = [[unit.shard.rows for unit in units] for units in (manifest.units, rollout.units)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{run.storage.url(key)} does not grade the rows of its rollout, unit by unit. Delete "
            f"it with the commits beside it, and run `opd grade --round {rollout.round}` again"
        )
    return RewardInputs(manifest, section.advantage)


def read_advantages(storage: Storage, rewards: RewardInputs) -> Advantages:
    """Return the advantages of a round, from one reading of all its reward shards.

    Raises:
        DataError: a shard is missing, corrupt or misshapen.
    """
    names = ["sequence_digest", "prompt_id", "reward"]
    units = rewards.manifest.units
    table = pa.concat_tables([read_rewards(storage, unit.shard).select(names) for unit in units])
    # the groups of a round are those of its prompts: one policy has sampled all of it
    _, group_R = np.unique(table.column("prompt_id").to_pylist(), return_inverse=True)
    advantage_R = group_advantages(table.column("reward").to_numpy(), group_R, kind=rewards.kind)
    return Advantages(advantage_R, table.column("sequence_digest"))
