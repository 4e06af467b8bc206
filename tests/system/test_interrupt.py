"""SIGTERM ends a command with exit code 130 wherever it comes."""

import subprocess
import sys

import pytest

AT_WORK = """
import signal, time
import cli.main

class Engine:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def work(**options):
    {work}
    time.sleep(60)

cli.main.app = work
cli.main.main([])
"""


@pytest.mark.parametrize("work", ["signal.raise_signal(signal.SIGTERM)", "Engine()"])
def test_sigterm_ends_a_command_also_from_code_that_may_not_raise(work: str) -> None:
    command = [sys.executable, "-c", AT_WORK.format(work=work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (
        130,
        "opd: interrupted; run the same command again to resume\n",
    )
