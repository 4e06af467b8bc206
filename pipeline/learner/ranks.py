"""Processes of the learner: joining them, and what they tell each other.

One process needs no launcher; many are started by torchrun or the DeepSpeed launcher, whose
environment variables win. Must be called before anything else of DeepSpeed. Promises: an error in
one process ends all of them, and one process says why.
"""

import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pipeline.engines.processes import end_with_parent
from pipeline.models.loading import pick_device
from schemas.errors import ConfigError, OpdError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""Longest wait for another process, which may be uploading a whole checkpoint meanwhile."""

LEAVE_S = 10.0
"""Seconds for which a silent process waits to be ended by its launcher."""

LOST_PEER = (
    *("closed by peer", "reset by peer", "connection closed", "remote process exited"),
    *("gloo/transport", "third_party/gloo", "nccl error", "broken pipe", "socket timeout"),
)
"""What gloo and NCCL say, among other things, when another process has ended."""

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What launchers tell each process of its place."""


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


def is_alone() -> bool:
    """Return whether this is the learner's only process, before any is joined.

    Raises:
        ConfigError: the environment names an impossible place among processes.
    """
    return place_of(os.environ)[2] == 1


def place_of(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return rank, rank on this machine, and number of processes, as a launcher has set them.

    Raises:
        ConfigError: they are no such numbers, or some are missing.
    """
    given = {name: environment[name] for name in VARIABLES if name in environment}
    if not given:
        return 0, 0, 1
    written = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **given}
    numbers = [int(word) if re.fullmatch("[0-9]{1,6}", word) else -1 for word in written.values()]
    rank, local_rank, count = numbers
    several = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in several if count != 1 and name not in environment]
    if missing or not (0 <= local_rank <= rank < count):
        wrong = f"{', '.join(missing)} missing" if missing else "no such place exists"
        raise ConfigError(
            f"the environment says {', '.join(f'{n}={v[:40]!r}' for n, v in given.items())}: "
            f"{wrong}. Launchers set {', '.join(several)} for each process; unset them to train "
            "in one process, or start by torchrun or train.num_processes"
        )
    return rank, local_rank, count


def join_ranks(device: str) -> Ranks:
    """Join the process group, or make a group of one; return this process's place in it.

    Args:
        device: `auto`, `cpu` or `cuda`; a process takes the GPU of its local rank.

    Raises:
        ConfigError: the device is not there, or fewer GPUs than processes.
    """
    chosen = pick_device(device).split(":")[0]
    if chosen == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    _quieten()
    _skip_shm_build(deepspeed)
    _, local_rank, count = place_of(os.environ)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    if chosen == "cuda":
        torch.cuda.set_device(pick_device(f"cuda:{local_rank}"))
    backend = "nccl" if chosen == "cuda" else "gloo"
    if not torch.distributed.is_initialized():
        if count > 1:
            _end_with_launcher()
            _join_others(backend)
        else:  # needs no port, so that runs on one machine never meet
            store = torch.distributed.HashStore()  # type: ignore[attr-defined] # public, yet unlisted
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
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

    values: list[Any] = [value] * torch.distributed.get_world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(values: "Tensor") -> list[float]:
    """Return the sums of some numbers over all processes, by each of which they are overwritten."""
    import torch

    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return [float(value) for value in values.tolist()]


def together(action: Callable[[], T]) -> T:
    """Return an action's result on each process, or end all of them where it fails on one.

    The main process raises the first error; the others say nothing and wait to be ended. Every
    process must call, and the action must not talk to other processes.

    Raises:
        OpdError: the action failed on some process.
    """
    import torch

    if torch.distributed.get_world_size() == 1:
        return action()
    results, error = [], None
    try:
        results.append(action())
    except OpdError as found:
        error = found
    first = next((e for e in gather_objects(error) if e is not None), None)
    if first is None:
        return results[0]
    if torch.distributed.get_rank() == 0:
        raise first
    _leave(first.exit_code)


def from_main(action: Callable[[], T]) -> T:
    """Return the main process's result of an action on every process.

    Raises:
        OpdError: the action failed.
    """
    import torch

    is_main = torch.distributed.get_rank() == 0
    result: T = gather_objects(together(lambda: action() if is_main else None))[0]
    return result


@contextmanager
def ranks_joined(device: str) -> Iterator[Ranks]:
    """Be one of the learner's processes within a block, and leave the others in order at its end.

    The sudden end of another process is the quiet end of this one.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        StorageError: another process ended and no launcher ended this one too.
    """
    import torch

    ranks = join_ranks(device)
    try:
        yield ranks
        if ranks.count > 1:  # threads of a group that is left standing abort the process at its end
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except RuntimeError as error:
        if ranks.count == 1 or not is_lost_peer(error):
            raise
        _wait_for_launcher()
        raise StorageError(
            "another process of the learner ended: its own message says why. The same command "
            "resumes from the last saved state (train.save_steps)"
        ) from None


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an error says that another process is gone or cannot be reached."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(s in text for s in LOST_PEER)


def _join_others(backend: str) -> None:
    """Join the processes that a launcher has started beside this one.

    Raises:
        ConfigError: the launcher's variables name no place to meet.
        StorageError: they cannot be reached.
    """
    import torch

    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not is_lost_peer(error):
            raise
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        kind = ConfigError if isinstance(error, ValueError) else StorageError
        raise kind(
            f"the other processes of the learner cannot be reached at {where} (MASTER_ADDR, "
            f"MASTER_PORT): {str(error).splitlines()[0]:.200}. Run the same command again once "
            "all can be started"
        ) from error


def _leave(exit_code: int) -> NoReturn:
    _wait_for_launcher()
    sys.exit(exit_code)


def _wait_for_launcher() -> None:
    """Give the launcher time to see who failed first, and to end this process for it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(LEAVE_S)


def _end_with_launcher() -> None:
    """Have the kernel end this process when its launcher dies, where there is such a kernel.

    A launcher that was killed cannot do it, and a learner without one holds its GPU for ever.
    Only for torch's, which starts processes from the thread that stays: the signal follows that.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)


def _quieten() -> None:
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    names = (
        "all_gather_into_tensor|reduce_scatter_tensor"  # what DeepSpeed calls, new in torch 2.13
    )
    warnings.filterwarnings("ignore", rf".*({names})", FutureWarning)


def _skip_shm_build(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling an inference-only op for a minute at its first CPU start.

    No public switch exists in 0.19; where the private one is gone, the build happens.
    """
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False
