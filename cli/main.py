"""Entry point of `opd`: exit codes, what a mistake looks like, and an orderly end by a signal.

Imports almost nothing itself, so that a signal finds a handler from the first moment on.
"""

import gc
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from schemas.errors import INTERRUPTED_EXIT_CODE, ConfigError, OpdError

END_WITH_PARENT = "OPD_END_WITH_PARENT"
"""Variable with which a scheduler asks for an end by SIGTERM when it dies itself."""

COLLECT = (50_000, 20, 100)
"""When Python looks for garbage: imports make half a million objects, and none of them is any."""

INTERRUPTED = "interrupted; run the same command again to resume"


def __getattr__(name: str) -> Any:
    """Return what the commands are made of, imported when it is asked for."""
    if name not in ("COMMANDS", "app"):
        raise AttributeError(name)
    from cli import commands

    return getattr(commands, name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _end_at_once_by_signals()
    gc.set_threshold(*COLLECT)
    from cli.process import commands_end_in_order, streams_kept
    from cli.terminal import prepare_streams, warn
    from pipeline.store import interrupts
    from pipeline.store.faults import known_error

    app = sys.modules[__name__].app  # tests bring their own; `-m` makes this module `__main__`
    prepare_streams()
    with streams_kept(), commands_end_in_order():
        try:
            _require_working_folder()
            try:
                app(args=arguments, prog_name="opd")
            finally:
                sys.stdout.flush()  # a full disk behind it is told, like any other
        except interrupts.Interrupted:
            _fail(INTERRUPTED, INTERRUPTED_EXIT_CODE)
        except Exception as error:
            if interrupts.is_asked():  # a library made an error of the signal
                _fail(INTERRUPTED, INTERRUPTED_EXIT_CODE)
            known = error if isinstance(error, OpdError) else known_error(error)
            if known is not None:
                _fail(str(known), known.exit_code, beside=known.beside)
            import traceback

            warn(*traceback.format_exc().splitlines())
            _fail(f"this is a bug in opd: {type(error).__name__}: {error}", 1)


def _require_working_folder() -> None:
    """Make sure that relative paths mean something; libraries ask for it when they are imported."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working folder cannot be used ({error.strerror}): it was deleted, or is closed "
            "to you. Change to another one, and run the same command again"
        ) from error


def _end_at_once_by_signals() -> None:
    """End by Ctrl-C and SIGTERM while nothing is there that has to end in order."""

    def end(number: int, frame: Any) -> None:
        os.write(2, f"opd: {INTERRUPTED}\n".encode())
        os._exit(INTERRUPTED_EXIT_CODE)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if os.environ.pop(END_WITH_PARENT, None):
        from pipeline.engines.processes import end_with_parent

        end_with_parent(signal.SIGTERM)


def _fail(message: str, code: int, *, beside: Mapping[str, Any] = OpdError.beside) -> None:
    from pipeline.store import interrupts

    interrupts.settle()  # what follows imports, and must not be ended once more
    from cli.output import is_main_process, print_json
    from cli.terminal import fail

    if is_main_process() or code not in (0, INTERRUPTED_EXIT_CODE):
        fail(message)
    if "--json" in sys.argv and is_main_process():
        print_json({"error": message, "exit_code": code, **beside})
    sys.exit(code)


if __name__ == "__main__":
    main()
