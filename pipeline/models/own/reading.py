"""What a model says of one row of ids: its log-probabilities, and what decides who computes them.

Whatever holds one way to compute a model against another reads such a row. Torch is imported inside
functions only.
"""

import json
import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Floats
from schemas.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACE = re.compile(r'"_name_or_path": "(?:[^"\\]|\\.)*"')
"""Where a model was loaded from, in the settings that transformers holds."""

COMPARED = 64
"""Tokens at the end of a row whose log-probabilities are compared."""


def row_logprobs(model: "PreTrainedModel", tokens: int) -> Floats:
    """Return the log-probabilities of the last tokens of one row of random ids.

    Args:
        model: the model.
        tokens: length of the row.
    """
    size = int(model.config.get_text_config().vocab_size)
    row = np.random.default_rng(0).integers(0, size, tokens)
    return logprobs_of(model, row, last=COMPARED)


def logprobs_of(
    model: "PreTrainedModel", row: NDArray[np.int64], *, last: int | None = None
) -> Floats:
    """Return the log-probabilities of a row's tokens but the first, read in one forward.

    Args:
        model: the model.
        row: ids.
        last: at most so many, at its end; None for all.
    """
    import torch

    from pipeline.models.head import decoder_of, head_of

    ids_1T = torch.from_numpy(row)[None].to(model.device)
    wanted = len(row) - 1 if last is None else min(last, len(row) - 1)
    with torch.inference_mode():
        states = decoder_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
        logprobs = head_of(model).logits(states[0, -wanted - 1 : -1]).float().log_softmax(-1)
        found = logprobs.gather(1, ids_1T[0, -wanted:, None])[:, 0]
    return np.asarray(found.cpu().numpy(), np.float32)


def settings_mark(model: "PreTrainedModel") -> str:
    """Return a digest of all that decides which code computes a model: its weights are not seen."""
    settings = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
    ways = [model.config._attn_implementation, model.get_experts_implementation()]
    return fingerprint([PLACE.sub("", settings), *ways, str(model.dtype), model.device.type])
