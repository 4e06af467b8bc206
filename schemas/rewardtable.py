"""Arrow schema of the rewards of sampled sequences, and the check of its shape."""

import numpy as np
import pyarrow as pa

from schemas.errors import DataError
from schemas.tables import check_table

REWARDS = pa.schema(
    [
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("sequence_digest", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("reward", pa.float32()),
        pa.field("fault", pa.string()),
        pa.field("words", pa.string()),
    ]
)
"""Rewards of sampled sequences; a row without one has the kind of a fault, and what happened."""


def check_rewards(table: pa.Table, *, where: str) -> None:
    """Make sure that a reward table is well-formed: each row has a finite reward, or a fault.

    Raises:
        DataError: as `check_table`; a row has both or none; a reward is no finite number.
    """
    check_table(table, REWARDS, where=where)
    has_reward = table.column("reward").is_valid().to_numpy()
    both = np.flatnonzero(has_reward == table.column("fault").is_valid().to_numpy())
    if len(both):
        found = "a reward and a fault" if has_reward[both[0]] else "neither a reward nor a fault"
        raise DataError(f"{where}: row {both[0]} has {found}")
    if not np.isfinite(table.column("reward").drop_null().to_numpy()).all():
        raise DataError(f"{where}: 'reward' holds a number that is not finite")
