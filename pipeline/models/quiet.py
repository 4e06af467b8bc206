"""What transformers would write on the screen: bars and tables that are told in our words."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def settle_libraries() -> None:
    """Keep transformers' bars and DeepSpeed's guess at the accelerator off the screen.

    To be called before a model class is imported: that imports accelerate, and so DeepSpeed.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    quieten: Any = disable_progress_bar
    quieten()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep transformers' warnings off the screen for a block, such as its tables of names."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
