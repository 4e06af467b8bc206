"""The command `opd` in a warm process (`python tests/warmcall.py SOCKET ARGUMENT…`).

Promises: it prints, ends and takes signals as that process does, which dies with it. Standard
library only.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def main(path: str, *arguments: str) -> None:
    """Ask the gate at a path for the process and end as it does."""
    request = {
        "function": "cli.main:main",
        "arguments": (),
        "argv": [str(REPOSITORY / "cli" / "main.py"), *arguments],
        "cwd": os.getcwd(),
        "env": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gate:
        gate.connect(path)
        socket.send_fds(gate, [json.dumps(request).encode()], [1, 2])
        pid = int(gate.recv(64))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: os.kill(pid, received))
        code = int(gate.recv(64))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
