"""How the end of several processes is told: who failed first, and what to do about it."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline.learner.launch import failure_of

KILLED, TOLD = -signal.SIGKILL, -signal.SIGTERM


@pytest.mark.parametrize(
    ("codes", "rank", "exit_code", "says"),
    [
        ((TOLD, KILLED), 1, 7, "SIGKILL, by hand or because memory ran out"),
        ((1, KILLED), 1, 7, "SIGKILL"),
        ((6, KILLED, 130), 1, 7, "SIGKILL"),
        ((137, TOLD), 0, 7, "SIGKILL"),
        ((TOLD, -signal.SIGBUS), 1, 7, "/dev/shm"),
        ((-signal.SIGABRT, TOLD), 0, 6, "SIGABRT"),
        ((TOLD, -signal.SIGSEGV), 1, 6, "SIGSEGV"),
        ((TOLD, 130), 0, 130, "SIGTERM"),
        ((130, 130), 0, 130, "130"),
        ((143, 6), 1, 6, "6"),
        ((-signal.SIGINT, TOLD), 0, 130, "SIGINT"),
        ((6, 4), 1, 4, "4"),
        ((6, 1), 1, 1, "1"),
        ((TOLD, 6), 1, 6, "6"),
        ((TOLD, 42), 1, 42, "42"),
        ((1, 2), 1, 2, "2"),
    ],
)
def test_the_process_that_failed_by_itself_decides_how_the_learner_ends(
    codes: tuple[int, ...], rank: int, exit_code: int, says: str
) -> None:
    failures = {r: ProcessFailure(r, 1, code, "nowhere") for r, code in enumerate(codes)}
    found, _, error = failure_of(failures)
    assert (found, error.exit_code) == (rank, exit_code)
    assert f"process {rank} of the learner" in str(error) and says in str(error)
    assert "The same command resumes" in str(error)
