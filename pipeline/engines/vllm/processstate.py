"""What vLLM changes in the process that it is called from, held back or put back.

Promises: environment, random states, settings of torch, process group, warnings, collections, and
classes and functions of other libraries are this process's own again. Imports nothing of vLLM.
"""

import gc
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pipeline.engines.vllm.marks import MARKS


class ProcessState:
    """What vLLM changes in a process that it runs in."""

    def __init__(self) -> None:
        """Look at the process."""
        self._environment = dict(os.environ)
        self._random = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._dtype, self._precision = (
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
        )
        self._excepthook = sys.excepthook
        self._had_group = torch.distributed.is_initialized()
        MARKS.begin()

    @contextmanager
    def group_kept(self) -> Iterator[None]:
        """Keep the process group in a block where vLLM ends, if it was there before vLLM.

        vLLM then works in the group that the learner of an earlier round made, and would destroy
        it; DeepSpeed holds on to it.
        """
        destroy = torch.distributed.destroy_process_group

        def destroy_others(group: Any = None) -> None:
            if group is not None:
                destroy(group)

        if self._had_group:
            torch.distributed.destroy_process_group = destroy_others
        try:
            yield
        finally:
            torch.distributed.destroy_process_group = destroy

    def restore(self) -> None:
        """Put it back, once."""
        MARKS.end()
        for name in set(os.environ) - set(self._environment):
            del os.environ[name]
        os.environ.update(self._environment)
        torch_state, python_state, numpy_state = self._random
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_default_dtype(self._dtype)
        if torch.get_float32_matmul_precision() != self._precision:
            torch.set_float32_matmul_precision(self._precision)
        sys.excepthook = self._excepthook


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings of vLLM's own imports and calls away from people."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def collected_once() -> Iterator[None]:
    """Collect garbage at the end of a block in which vLLM would do it again and again.

    In a process that has imported vLLM each time takes half a second.
    """
    collect = gc.collect
    gc.collect = lambda generation=2: 0
    try:
        yield
    finally:
        gc.collect = collect
        collect()


@contextmanager
def unprinted(*, shown: bool) -> Iterator[None]:
    """Keep what libraries print to stderr in a block off the screen.

    Args:
        shown: whether it is shown where the block fails: the words of a process of its own are all
            there is.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            file.seek(0)
            if shown:
                os.write(kept, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
