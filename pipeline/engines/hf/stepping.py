"""A decoder that reads token by token: its cache as transformers makes it, positions, padding.

Promises: a model whose cache is not known is refused; rows are padded only where a padded row was
seen to have the numbers that it has alone. Shapes: B rows, T tokens, V vocabulary, H hidden.
"""

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.border import explained
from pipeline.models.head import SETTINGS, Head, decoder_of
from pipeline.models.padding import padded
from pipeline.scores.tolerances import noise_limit
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECURRENT = "cache_params"

CACHES = ("past_key_values", RECURRENT)
"""What decoders call the cache that they are given."""

SHORT, LONG = 3, 9
"""Tokens of the rows on which padding is tried."""


class Stepper:
    """A model that gives the states of the next token, and goes on from there."""

    def __init__(self, model: "PreTrainedModel", head: Head, dtype: str) -> None:
        """Hold the model.

        Args:
            model: a causal language model.
            head: its head.
            dtype: its number format.
        """
        self._model, self._head, self._dtype = model, head, dtype
        self._decoder = decoder_of(model)
        takes = inspect.signature(self._decoder.forward).parameters
        self._cache_name = next((name for name in CACHES if name in takes), None)
        self._takes_positions = "position_ids" in takes

    def begin(self) -> Any:
        """Return an empty cache of the kind that the model's layers need.

        Raises:
            ConfigError: transformers has none that can be relied on.
        """
        from pipeline.engines.hf.growing import growing_cache

        name = type(self._model).__name__
        supported: Any = self._model._supports_default_dynamic_cache
        inside = hasattr(self._model, "_setup_cache")  # RecurrentGemma: no row can be taken out
        if self._cache_name is None or inside or not supported():
            raise ConfigError(
                f"{name} cannot sample on engine 'hf': what it keeps between tokens is not one of "
                "transformers' own caches. Set the engine of rollout and eval to 'vllm', or choose "
                "another model; as a teacher it can be used"
            )
        with explained(f"{name}: no cache can be made", advice=SETTINGS):
            return growing_cache(self._model.config.get_text_config(decoder=True))

    def next_states(self, current_BT: Tensor, mask_BT: Tensor, cache: Any) -> Tensor:
        """Return the [B, H] states that predict the next token of each row.

        Args:
            current_BT: ids that the cache does not hold yet.
            mask_BT: which places hold tokens, those of the cache too.
            cache: what `begin` returned; it grows.
        """
        given: dict[str, Any] = {self._cache_name or "": cache}
        now = slice(-current_BT.shape[1], None)
        if self._takes_positions:
            given["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, now]
        if self._cache_name == RECURRENT:
            mask_BT = mask_BT[:, now]  # it multiplies the tokens that are read with the mask
        hidden = self._decoder(
            input_ids=current_BT, attention_mask=mask_BT, use_cache=True, **given
        )
        states_BH: Tensor = hidden.last_hidden_state[:, -1]
        return states_BH

    @cached_property
    def pads(self) -> bool:
        """Whether a row has the numbers that it has alone where it is padded on the left."""
        ids = np.arange(LONG, dtype=np.int32) % int(self._head.weight_VH.shape[0])
        alone = self._two_steps([ids[-SHORT:]])
        try:
            together = self._two_steps([ids, ids[-SHORT:]])
        except (RuntimeError, ValueError, IndexError):  # shapes that do not fit a mask
            return False
        apart = (together[:, 1] - alone[:, 0]).abs()
        found = apart.max() if self._dtype == "float32" else apart.mean()
        return float(found) <= noise_limit(self._dtype)

    @torch.inference_mode()
    def _two_steps(self, rows: list[Any]) -> Tensor:
        """Return the log-probabilities after some rows, and after one token more: [2, B, V]."""
        ids_BT, mask_BT = padded(rows, self._model.device, left=True)
        cache = self.begin()
        first_BV = self._head.logits(self.next_states(ids_BT, mask_BT, cache))
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        then_BV = self._head.logits(self.next_states(ids_BT[:, -1:], mask_BT, cache))
        return torch.stack([first_BV, then_BV]).log_softmax(-1)
