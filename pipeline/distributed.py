"""Processes of the learner: joining them, and what they tell each other.

One process needs no launcher; many are started by torchrun or the DeepSpeed launcher, whose
environment variables win. Must be called before anything else of DeepSpeed.
"""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from typing import Any

from pipeline.models import pick_device


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    local_rank: int
    count: int
    device: str

    @property
    def is_main(self) -> bool:
        """Return whether this process writes manifests and talks to people."""
        return self.rank == 0


def join_ranks(device: str) -> Ranks:
    """Join the process group, or make a group of one; return this process's place in it.

    Args:
        device: `auto`, `cpu` or `cuda`; a process takes the GPU of its local rank.
    """
    chosen = pick_device(device).split(":")[0]
    _prepare_environment(chosen)
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _skip_shm_build(deepspeed)
    backend = "nccl" if chosen == "cuda" else "gloo"
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    local_rank = int(os.environ["LOCAL_RANK"])
    if chosen == "cuda":
        torch.cuda.set_device(local_rank)
    return Ranks(
        rank=torch.distributed.get_rank(),
        local_rank=local_rank,
        count=torch.distributed.get_world_size(),
        device=f"cuda:{local_rank}" if chosen == "cuda" else "cpu",
    )


def barrier() -> None:
    """Wait until every process is here."""
    import torch

    torch.distributed.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Return the value of every process, in rank order, on every process."""
    import torch

    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(values: list[float], device: str) -> list[float]:
    """Return sums over all processes, in float64."""
    import torch

    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def _prepare_environment(device: str) -> None:
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)


def _skip_shm_build(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling an inference-only op for a minute at its first CPU start.

    No public switch exists in 0.19; where the private one is gone, the build happens.
    """
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False
