"""SIGTERM and Ctrl-C end a command with exit code 130 wherever they come."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import finish, start
from tests.support.tiny import write_run

TOLD = "opd: interrupted; run the same command again to resume\n"

AT_WORK = """
import signal, time
import cli.main
import pydantic

class Engine:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

class Words(pydantic.BaseModel):
    field: int = 1

    @pydantic.field_serializer("field")
    def words(self, value):
        signal.raise_signal(signal.SIGTERM)
        if {twice}:
            signal.raise_signal(signal.SIGTERM)
        return value

def work(**options):
    {work}
    time.sleep(60)

cli.main.app = work
cli.main.main([])
"""

WORKS = {
    "anywhere": "signal.raise_signal(signal.SIGTERM)",
    "code that may not raise": "Engine()",
    "Rust": "Words().model_dump_json()",
    "an import": "signal.raise_signal(signal.SIGTERM); import tabnanny; print('deaf')",
}


@pytest.mark.parametrize(("work", "twice"), [*((work, False) for work in WORKS), ("Rust", True)])
def test_sigterm_ends_a_command_from_code_of_any_kind(work: str, twice: bool) -> None:
    command = [sys.executable, "-c", AT_WORK.format(work=WORKS[work], twice=twice)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", TOLD)


def test_a_call_that_returns_to_nobody_is_ended_too() -> None:
    deaf = AT_WORK.replace("time.sleep(60)", "hang()").replace(
        "def work",
        "LAST = __import__('cli.process').process\nLAST.LAST_S = 3.0\n\n"
        "def hang():\n    while True:\n        try:\n            time.sleep(60)\n"
        "        except BaseException:\n            pass\n\ndef work",
    )
    command = [sys.executable, "-c", deaf.format(work=WORKS["anywhere"], twice=False)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (130, "")
    assert "in the middle of its work" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_gets_a_signal_at_any_moment_ends_as_it_should(
    tmp_path: Path, number: signal.Signals
) -> None:
    config, chance = write_run(tmp_path, changes={"run.rounds": 40}), random.Random(number)
    for _ in range(3):
        process = start("run", "-c", config)
        while not catches(process.pid, signal.SIGTERM):  # before that, it has not begun
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 1.7))
        process.send_signal(number)
        outcome = finish(process)
        assert (outcome.code, outcome.stderr.count("opd: ")) == (130, 1), outcome.stderr
        assert outcome.stderr.endswith(TOLD)
        assert "Traceback" not in outcome.stderr
    assert list(tmp_path.glob("store/**/leases/*")) == []


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal; True where that cannot be seen."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(0.3)
        return True
    caught = re.search(r"^SigCgt:\s*(\w+)$", status.read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
