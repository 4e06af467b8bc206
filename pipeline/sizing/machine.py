"""What this machine has for a run: memory, GPUs, engines. Torch is imported inside functions."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.sizing.parts import GIB

LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says how much memory this container may take; `max` where that is all."""


@dataclass(frozen=True)
class Machine:
    """What models may use."""

    cores: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()
    """Memory of each GPU, bytes."""
    has_vllm: bool = False

    @property
    def words(self) -> str:
        """Return what it has, for people."""
        memory = f"{self.cores} cores, {self.memory_bytes / GIB:.0f} GiB"
        if not self.gpus:
            return f"{memory}, no GPU"
        return f"{memory}, {len(self.gpus)} GPUs of {min(self.gpus) / GIB:.0f} GiB"


def this_machine() -> Machine:
    """Return what the machine has that this process runs on."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return Machine(
        cores=os.cpu_count() or 1,
        memory_bytes=_memory(),
        gpus=tuple(gpus),
        has_vllm=importlib.util.find_spec("vllm") is not None,
    )


def _memory() -> int:
    """Return the memory of the machine, or of the container where that has less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(LIMIT.read_text()))
    except (OSError, ValueError):  # none, or `max`
        return whole
