"""Errors of opd, one class per party who must act, each with its exit code.

Every message says what was found, where, what was expected and what to do next.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class OpdError(Exception):
    """Base of every error that opd raises on purpose; `exit_code` is the exit status of the CLI."""

    exit_code = 1
    beside: Mapping[str, Any] = MappingProxyType({})
    """What programs are told beside the message."""


class ConfigError(OpdError):
    """The command line, the configuration or a file that it names is wrong: the user edits it."""

    exit_code = 2


class IdentityError(OpdError):
    """Stored objects and this run do not belong together: another teacher, tokenizer or config."""

    exit_code = 3


class DataError(OpdError):
    """Stored bytes are corrupt, misshapen or hold impossible values: the object is replaced."""

    exit_code = 4


class ConflictError(OpdError):
    """What this process asks for is taken by something else: choose another name."""

    exit_code = 5


class StorageError(OpdError):
    """The store or a model's server cannot be used now: fix access or space, then run again."""

    exit_code = 6


class CapacityError(OpdError):
    """Memory or another capacity ran out: lower a batch size, then run again."""

    exit_code = 7


class RegressionError(OpdError):
    """The student got worse than `[gate]` allows: the user decides how to go on."""

    exit_code = 8


INTERRUPTED_EXIT_CODE = 130
"""Exit status after Ctrl-C or SIGTERM."""


class StoppedError(OpdError):
    """A process of ours was told to end by somebody else: run the same command again."""

    exit_code = INTERRUPTED_EXIT_CODE
