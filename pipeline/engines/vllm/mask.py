"""A logits processor of vLLM: only ids that the tokenizer has are sampled.

Heads are often padded beyond the tokenizer's ids. All requests of an engine name the same limit.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from pipeline.engines.vllm.worker import LIMIT


class VocabularyMask(LogitsProcessor):
    """Gives ids from the limit on no probability."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Begin without a limit."""
        self._limit: int | None = None

    def is_argmax_invariant(self) -> bool:
        """Say that the most likely id may change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take the limit from new requests."""
        for _, params, *_ in batch_update.added if batch_update else ():
            self._limit = (params.extra_args or {}).get(LIMIT, self._limit)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask the ids from the limit on, in place."""
        if self._limit is not None and self._limit < logits.shape[-1]:
            logits[:, self._limit :] = -torch.inf
        return logits
