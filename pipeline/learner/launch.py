"""Start of the learner's processes on this machine, through torch's own launcher.

Promises: what the main process prints to stdout is returned, whole and once; a process that fails
ends all of them, and its exit code is told; a signal to us ends them before us.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runs.run import Run
from pipeline.store import interrupts
from pipeline.store.disk.scratch import scratch
from schemas.errors import (
    INTERRUPTED_EXIT_CODE,
    CapacityError,
    OpdError,
    StoppedError,
    StorageError,
)
from schemas.records.training import TrainManifest

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig


def needs_launch(run: Run) -> bool:
    """Return whether processes must be started: several are wanted and no launcher did it."""
    return run.config.train.num_processes > 1 and "RANK" not in os.environ


@dataclass(frozen=True)
class Launched:
    """How the main process of a learner ended; it has said why, where that was not well."""

    exit_code: int
    printed: str
    """What it printed to stdout."""


def launch_learner(run: Run, round_index: int, arguments: Sequence[str]) -> Launched:
    """Run a command in `train.num_processes` processes and wait for them.

    Args:
        run: the run.
        round_index: round that they train.
        arguments: of Python, `-P` and the module first, and what it takes.

    Raises:
        OpdError: the round cannot be trained, or a process other than the main one failed.
        StorageError: the processes could not meet.
    """
    from pipeline.learner.inputs import find_work

    work = find_work(run, round_index)  # a mistake is told once, and before anything is started
    count = 1 if isinstance(work, TrainManifest) else run.config.train.num_processes
    with scratch("launch") as folder:
        failures = _run_processes(_settings(folder, count), arguments)
        printed = "".join(p.read_text() for p in folder.glob("**/0/stdout.log"))
    if not failures:
        return Launched(0, printed)
    rank, code, error = failure_of(failures)
    if rank > 0 or code < 0:
        raise error
    return Launched(code, printed)


GOES_ON = "The same command resumes from the last saved state (train.save_steps)"

ENDED_BY = {
    signal.SIGKILL: (CapacityError, ", by hand or because memory ran out. Lower what needs memory"),
    signal.SIGBUS: (CapacityError, ", as where shared memory (/dev/shm) or a disk is full"),
    signal.SIGTERM: (StoppedError, ""),
    signal.SIGINT: (StoppedError, ""),
}
"""Signal that ended a process → who must act, and why it may have come; others pass by themselves.

The kernel kills who asks for memory that it does not have, and says no more than SIGKILL."""


def failure_of(failures: "Mapping[int, ProcessFailure]") -> tuple[int, int, OpdError]:
    """Return rank and exit code of the process that failed by itself, and the error to tell.

    The others end because it did: as they lose it, or by the launcher's SIGTERM.
    """

    def order(rank: int) -> tuple[int, int]:
        code = _meaning(failures[rank].exitcode)
        following = {StorageError.exit_code: 3, INTERRUPTED_EXIT_CODE: 4, OpdError.exit_code: 2}
        stopped = code in (-signal.SIGTERM, -signal.SIGINT)
        return (4 if stopped else 1 if code < 0 else following.get(code, 0)), rank

    rank = min(failures, key=order)
    code = _meaning(failures[rank].exitcode)
    told = f"process {rank} of the learner "
    if code < 0:
        number = signal.Signals(-code)
        kind, reason = ENDED_BY.get(number, (StorageError, ", and may not be the next time"))
        return rank, code, kind(f"{told}was ended by {number.name}{reason}. {GOES_ON}")
    kinds = {kind.exit_code: kind for kind in OpdError.__subclasses__()}
    error = kinds.get(code, OpdError)(
        f"{told}ended with exit code {code}; its message is above. {GOES_ON}"
    )
    error.exit_code = code
    return rank, code, error


def _meaning(code: int) -> int:
    """Return an exit code, or minus the signal where a shell or a container told it as 128 + n."""
    known = {int(number) for number in signal.Signals}
    number = code - 128
    return -number if number in known and code != INTERRUPTED_EXIT_CODE else code


def _settings(folder: Path, count: int) -> "LaunchConfig":
    """Return torch's settings for processes that print to files below a folder."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"opd-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.OUT),
    )


def _run_processes(
    settings: "LaunchConfig", arguments: Sequence[str]
) -> "Mapping[int, ProcessFailure]":
    """Return the failed processes by rank, none where all ended well."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # it says at length what we say in a line
            logging.getLogger(name).setLevel(logging.CRITICAL)
    interrupted = None
    with _signals_restored():
        try:
            elastic_launch(settings, sys.executable)(*arguments)
        except ChildFailedError as error:
            return error.failures
        except SignalException as error:
            interrupted = error.sigval
        except (RendezvousError, DistError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StorageError(
                f"the learner's processes could not meet on this machine: {reason:.200}. Look for "
                "a taken port or a firewall on 127.0.0.1, then run the same command again"
            ) from error
    if interrupted is not None:
        signal.raise_signal(interrupted)  # now that the processes are gone, it is ours
        interrupts.check()
    return {}


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Give the signals that torch's launcher takes for itself back at the end of a block."""
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    saved = {number: signal.getsignal(number) for number in taken}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
