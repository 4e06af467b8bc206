"""The student as training exported it, loaded again and compared: the next stage samples from it.

So a checkpoint is loaded once, not by its check and once more by who samples from it. Promises: it
is given to who asks for the very weights, by their policy version, and to nobody twice.
"""

from typing import TYPE_CHECKING

from pipeline.engines.kept import put, take
from pipeline.engines.memory import free_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACE = "exported student"


class _Loaded:
    """A model that nobody samples from yet."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model

    def close(self) -> None:
        """Give its memory back."""
        free_weights(self.model)


def keep_exported(model: "PreTrainedModel", *, version: str, dtype: str) -> None:
    """Keep a loaded checkpoint for the stage that samples from it; close it where none is kept.

    Args:
        model: as `load_model` gives it.
        version: policy version of the checkpoint.
        dtype: number format that it was loaded in.
    """
    put(PLACE, (version, dtype), _Loaded(model))


def take_exported(*, version: str, dtype: str) -> "PreTrainedModel | None":
    """Return the kept model of a policy version, now the caller's, or None where there is none."""
    found: _Loaded | None = take(PLACE, (version, dtype))
    return None if found is None else found.model
