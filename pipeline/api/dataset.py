"""A round as a torch dataset: what the learner reads of each sequence, as tensors.

Promises: everything that the learner checks is checked; `keep` units are held at most.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.learner.feed.data import RoundData
from pipeline.learner.inputs import find_inputs
from pipeline.runs.run import Run


class RoundDataset(Dataset[dict[str, torch.Tensor]]):
    """Sequences of a round in the order of its rollout, with their teachers' scores."""

    def __init__(self, run: Run, round_index: int, *, keep: int = 2) -> None:
        """Find what the round trains on; shards are read when their rows are.

        Args:
            run: the run.
            round_index: the round.
            keep: units that are held in memory.

        Raises:
            ConfigError: the round is not sampled or not scored.
            IdentityError: the scores are of another teacher or rollout.
        """
        found = find_inputs(run, round_index)
        self._data = RoundData(run.storage, found.rollout, found.scores, keep=max(keep, 1))
        self._rows = sum(unit.shard.rows for unit in found.rollout.units)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self._rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a sequence of P prompt and T response tokens.

        Raises:
            IndexError: there are not so many.
            DataError: a shard is missing, corrupt or of other sequences.
        """
        place = range(self._rows)[index]
        batch = self._data.batch(np.array([place], dtype=np.int64))
        prompt, teacher = int(batch.prompt_tokens_B[0]), batch.teacher
        trained_T = batch.weight_T > 0
        return {
            "ids": _tensor(batch.id_rows()[0], torch.int64),
            "mask": _tensor(np.concatenate([np.zeros(prompt, bool), trained_T]), torch.bool),
            "weight": _tensor(batch.weight_T),
            "student_logprob": _tensor(batch.rollout_logprob_T),
            "token_logprob": _tensor(teacher.token_logprob_T),
            "topk_ids": _tensor(teacher.topk_ids_TK, torch.int64),
            "topk_logprobs": _tensor(teacher.topk_logprobs_TK),
            "tail_logprobs": _tensor(teacher.tail_TB),
        }


def _tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a copy that may be written to."""
    return torch.tensor(np.asarray(values), dtype=dtype)
