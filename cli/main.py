"""Entry point of `opd`: commands, exit codes and what a mistake looks like.

Must not import torch, vllm or deepspeed: commands import what they need when they run.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import typer

from cli import config as inspect_config
from cli import doctor, quickstart, runs, stages
from cli.cache import commands as cache
from cli.helppage import CommandPage, GroupPage
from cli.output import is_main_process, print_json
from cli.terminal import fail, prepare_streams, warn
from pipeline.engines.processes import SAFE_PATH, end_with_parent
from schemas.errors import INTERRUPTED_EXIT_CODE, CapacityError, OpdError, StorageError

END_WITH_PARENT = "OPD_END_WITH_PARENT"
"""Variable with which a scheduler asks for an end by SIGTERM when it dies itself."""

app = typer.Typer(
    cls=GroupPage,
    help="On-policy distillation with an offline teacher cache.",
    epilog="New here? Run `opd quickstart`. `opd COMMAND --help` explains a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start here": {
        "quickstart": quickstart.quickstart,
        "doctor": doctor.doctor,
        "config": inspect_config.app,
    },
    "Stages": {
        "run": stages.run_all,
        "rollout": stages.rollout,
        "score": stages.score,
        "train": stages.train,
        "eval": stages.evaluate,
    },
    "Look": {"status": runs.status, "plan": runs.plan},
    "Schedulers": {"gate": runs.gate},
    "Cache": {"cache": cache.app},
}
"""Heading in `opd --help` → command → what it runs."""


def _add_commands() -> None:
    for heading, commands in COMMANDS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=heading)
            else:
                app.command(name, cls=CommandPage, rich_help_panel=heading)(command)


_add_commands()


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM came; nothing but the end of the process handles it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _prepare_process()
    try:
        app(args=arguments, prog_name="opd")
    except Interrupted:
        _fail("interrupted; run the same command again to resume", INTERRUPTED_EXIT_CODE)
    except OpdError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        known = _capacity(error) or _storage(error)
        if known is None:
            warn(*traceback.format_exc().splitlines())
            _fail(f"this is a bug in opd: {type(error).__name__}: {error}", 1)
        else:
            _fail(str(known), known.exit_code)


def _prepare_process() -> None:
    """Set what must hold before torch is imported, and make Ctrl-C and SIGTERM an orderly end."""
    prepare_streams()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(SAFE_PATH)  # torch, vLLM and multiprocessing start more of it

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        """Send the signal once more where the first met code that may not raise (`__del__`)."""
        if isinstance(lost.exc_value, Interrupted):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            sys.__unraisablehook__(lost)

    if os.environ.pop(END_WITH_PARENT, None):
        end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = send_again


def _fail(message: str, code: int) -> None:
    if is_main_process() or code not in (0, INTERRUPTED_EXIT_CODE):
        fail(message)
    if "--json" in sys.argv and is_main_process():
        print_json({"error": message, "exit_code": code})
    sys.exit(code)


def _capacity(error: Exception) -> OpdError | None:
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate" in text:
        return CapacityError(
            f"memory ran out: {text.splitlines()[0] if text else name}. Lower batch_tokens of the "
            "stage, or train.micro_batch_tokens, and run the same command again: what is "
            "committed is kept"
        )
    return None


def _storage(error: Exception) -> OpdError | None:
    """Return a storage error for a fault of the local disk outside the store, such as /tmp."""
    text = str(error)
    if any(words in text for words in ("No space left", "PytorchStreamWriter", "os error 28")):
        return StorageError(
            f"the disk is full ({text.splitlines()[0]}). Free room in the store and in the folder "
            "for temporary files (TMPDIR), then run the same command again: nothing is "
            "half-written"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return StorageError(f"{error.strerror}: {error.filename}. Fix this and re-run")
    return None


if __name__ == "__main__":
    main()
