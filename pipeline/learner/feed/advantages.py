"""The advantages of a round's rows: what its rewards say of each, inside its prompt's group."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.objectives.advantages import Groups, group_advantages
from pipeline.shards.rewards import read_rewards
from pipeline.store.storage import Storage
from schemas.columns import Floats
from schemas.config.evaluation import AdvantageKind
from schemas.errors import DataError
from schemas.records.rewards import RewardManifest


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
    reward_R: Floats
    """As it was given; NaN where there is none."""
    group_R: Groups
    """Number of the group that the row's reward is of."""

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
    reward_R = table.column("reward").to_numpy()
    advantage_R = group_advantages(reward_R, group_R, kind=rewards.kind)
    return Advantages(advantage_R, table.column("sequence_digest"), reward_R, group_R)
