"""The process of a grader: it reads requests from stdin and answers each row with one line.

Runs as a file of its own, with the standard library alone, so that nothing of opd is in the way of
a grader. What a grader prints goes to stderr; answers go to where stdout was when it started.
"""

import array
import base64
import contextlib
import ctypes
import fcntl
import importlib.metadata
import inspect
import json
import math
import os
import re
import reprlib
import resource
import signal
import subprocess
import sys
import termios
import time
import traceback
import types
import warnings
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any

LARGEST = 3.4028234663852886e38
"""The largest grade that a float32 holds."""

WORDS = 2000
"""Characters of an error that are passed on."""

LONGEST_LINE = 1 << 16
"""Bytes of a command's answer."""

END_S, POLL_S = 0.2, 0.002
"""Seconds in which a command that closed its output ends by itself, and between two looks."""

Put = Callable[[dict[str, Any]], None]

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

MODULE = "opd_grader"
"""Name of the module that a grader's file becomes."""


def main() -> None:
    """Load the grader that the first line names, then answer the rows of each further line."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="ascii")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # where memory runs out, this process goes first
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")

    def put(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        start = json.loads(requests.readline())
        bound_memory(start.get("memory_bytes"))
        grade = loaded(start, put)
    except BaseException as error:  # a user's module may raise anything while it is loaded
        put(told(error))
        return
    put({"ready": True})
    for line in requests:
        for row in json.loads(line):
            put(graded(grade, row))


def bound_memory(most: int | None) -> None:
    """Let this process have no more memory of its own than some bytes; None takes the bound away.

    What lies in files, such as libraries, does not count. Where there is no such bound, none holds.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = hard if most is None else most
    if hard != resource.RLIM_INFINITY and soft != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def loaded(given: dict[str, Any], put: Put) -> Callable[..., dict[str, Any]]:
    """Return what answers a row, for a command, a pattern, an entry point or the source of a file.

    Args:
        given: which one.
        put: sends what a command says before it answers.

    Raises:
        TypeError: it is no function of a response, its reference and its metadata.
    """
    if "command" in given:
        return Command(given["command"], put).answer
    if "pattern" in given:
        warnings.simplefilter("ignore")
        compiled = re.compile(given["pattern"])
        return lambda response, reference, metadata: found_span(compiled, response)
    function = _entry_point(given) if "value" in given else _of_source(given)
    if not callable(function):
        raise TypeError(f"{given['name']} is a {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{given['name']} is an async function, expected a plain one")
    with contextlib.suppress(ValueError):  # some functions written in C tell no signature
        signature = inspect.signature(function)
        try:
            signature.bind("", None, {})
        except TypeError as error:
            raise TypeError(
                f"{given['name']}{signature} cannot be called with (response, reference, "
                f"metadata): {error}"
            ) from None
    return lambda response, reference, metadata: valued(function(response, reference, metadata))


class BrokenError(Exception):
    """A command that broke the protocol, so that nothing more can be asked of it."""


class Command:
    """A program that reads a JSON line for each response, and answers it with one."""

    def __init__(self, words: list[str], put: Put) -> None:
        """Start it, without a shell; its errors go where prints of a grader go."""
        self._put = put
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=ended_with_parent
        )
        self._asked = 0

    def answer(self, response: str, reference: str | None, metadata: Any) -> dict[str, Any]:
        """Return the answer to a row."""
        self._asked += 1
        row = {"id": self._asked, "response": response, "reference": reference}
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({**row, "metadata": metadata}).encode() + b"\n")
            stdin.flush()
            self._wait_until_read(stdin.fileno())
            line = stdout.readline(LONGEST_LINE + 1)
        except BrokenPipeError:
            line = b""
        if not line:
            raise BrokenError(self._end())
        if len(line) > LONGEST_LINE:
            raise BrokenError(f"answered with a line of more than {LONGEST_LINE} bytes")
        return self._valued(line)

    def _wait_until_read(self, pipe: int) -> None:
        """Say that it has begun with a row: until then it may still be starting."""
        left = array.array("i", [1])
        while left[0] and self._process.poll() is None:
            fcntl.ioctl(pipe, termios.FIONREAD, left)
            time.sleep(POLL_S if left[0] else 0.0)
        self._put({"begun": True})

    def _valued(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or "id" not in found or line[-1:] != b"\n":
            raise BrokenError(f"answered {_shown(line)}, expected a JSON object with id and reward")
        if isinstance(found["id"], bool) or found["id"] != self._asked:
            raise BrokenError(f"answered id {_shown(found['id'])}, asked was id {self._asked}")
        if "error" in found:
            return {"error": f"an error: {str(found['error'])[:WORDS]}"}
        if "reward" not in found:
            raise BrokenError(f"answered {_shown(line)}, which has no reward")
        return valued(found["reward"])

    def _end(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"ended with exit status {code}" if code >= 0 else f"was killed by signal {-code}"


def ended_with_parent() -> None:
    """Have the kernel end this process with the one that started it, on Linux."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)


def graded(grade: Callable[..., dict[str, Any]], row: list[Any]) -> dict[str, Any]:
    """Return the answer to a row: its response, reference and metadata as JSON."""
    try:
        response, reference, metadata = row
        return grade(response, reference, json.loads(metadata) if metadata else {})
    except BaseException as error:  # SystemExit too: a row is answered whatever happens
        return told(error)


def found_span(pattern: re.Pattern[str], response: str) -> dict[str, Any]:
    """Return where the first group of a pattern, or its whole match, stands in a response."""
    match = pattern.search(response)
    if match is None:
        return {"span": [-1, -1]}
    return {"span": match.span(1 if pattern.groups else 0)}


def valued(value: Any) -> dict[str, Any]:
    """Return a grade as an answer; what is no finite number of float32 is refused."""
    try:
        scalar = value.item() if getattr(value, "shape", None) == () else value
        number = float(scalar) if isinstance(scalar, (Real, Decimal)) else None
    except (ValueError, OverflowError):
        number = math.inf
    if number is None:
        return {"refused": f"returned {_shown(value)}, expected a number"}
    if not abs(number) <= LARGEST:
        return {"refused": f"returned {_shown(value)}, expected a finite number"}
    return {"value": number}


def told(error: BaseException) -> dict[str, Any]:
    """Return an exception as an answer: what it is, and the line that raised it."""
    if isinstance(error, MemoryError):
        bound_memory(None)  # there may be none left to tell it with
        return {"memory": "ran out of memory: it raised MemoryError"}
    if isinstance(error, BrokenError):
        return {"broken": str(error)}
    words = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__]
    place = f" ({os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno})" if theirs else ""
    return {"error": words[:WORDS] + place}


def _shown(value: Any) -> str:
    try:
        return f"{reprlib.repr(value)[:200]} of type {type(value).__name__}"
    except Exception:
        return f"a {type(value).__name__}"


def _entry_point(given: dict[str, Any]) -> Any:
    point = importlib.metadata.EntryPoint(given["name"], given["value"], "opd.graders")
    return point.load()


def _of_source(given: dict[str, Any]) -> Any:
    module = types.ModuleType(MODULE)
    module.__file__ = given["path"]
    sys.modules[MODULE] = module
    code = compile(base64.b64decode(given["source"]), given["path"], "exec", dont_inherit=True)
    exec(code, module.__dict__)  # it is what this process is for
    if not hasattr(module, given["name"]):
        raise AttributeError(f"there is no {given['name']} in it")
    return getattr(module, given["name"])


if __name__ == "__main__":
    main()
