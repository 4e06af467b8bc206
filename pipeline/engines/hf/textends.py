"""Stop strings in the growing responses of a batch, for an engine that samples token by token.

Promises: a row's text is read once, and only when its last token may end it; which those are is
looked up for all rows at once. Shapes: R rows of the batch, B of them that got a token, T tokens so
far, V ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.stopstrings import Reading, StopStrings
from schemas.columns import Ids


class BatchReading:
    """Growing responses of a batch; one is read only where its last token may end it."""

    def __init__(
        self, stops: StopStrings, prompts: Sequence[Ids], device: torch.device | str
    ) -> None:
        """Begin after the prompts of the batch."""
        self._readings = [Reading(stops, prompt) for prompt in prompts]
        self._may_end_V = torch.from_numpy(stops.may_end_V).to(device)
        self._waits_R = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    def ended(self, rows: Tensor, ids_RT: Tensor) -> Tensor:
        """Return bool [B]: whether the text of a row ends with its last token.

        Args:
            rows: int64 [B] which rows of the batch got a token.
            ids_RT: int64 [R, T] what the rows of the batch have sampled so far.
        """
        last_B = ids_RT[rows, -1].clamp(max=len(self._may_end_V) - 1)
        asked = (self._may_end_V[last_B] | self._waits_R[rows]).nonzero()[:, 0]
        ended_B = torch.zeros_like(rows, dtype=torch.bool)
        if len(asked):
            numbers = rows[asked]
            readings = [self._readings[row] for row in numbers.tolist()]
            found = [
                any(reading.add(token) for token in ids[reading.tokens :])
                for reading, ids in zip(readings, ids_RT[numbers].tolist(), strict=True)
            ]
            ended_B[asked] = torch.tensor(found, device=rows.device)
            waits = [reading.waits for reading in readings]
            self._waits_R[numbers] = torch.tensor(waits, device=rows.device)
        return ended_B
