"""The quickstart command: models and prompts from nothing, then an ordinary run."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli.look.statuspage import print_status
from cli.options import JsonOption, load_run
from cli.output import make_progress
from cli.stages import drive
from cli.terminal import say
from schemas.config.file import parse_config
from schemas.config.run import MAX_ROUNDS
from schemas.config.section import MOST
from schemas.errors import ConfigError


def quickstart(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make.", show_default=True)
    ] = Path("opd-quickstart"),
    root: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Store of the run: a path inside DIR, or s3://bucket/prefix."
        ),
    ] = "store",
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=MAX_ROUNDS, help="Rounds of rollout, score and train."
        ),
    ] = 14,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=MOST, help="Seed of every random choice.")
    ] = 0,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="What runs the models: hf or vllm.")
    ] = "hf",
    as_json: JsonOption = False,
) -> None:
    """Watch a student learn addition from cached teacher scores, on a CPU.

    Makes a tokenizer, a teacher and a student, and runs rounds of rollout, score, train and eval:
    about five minutes. It leaves an ordinary run.toml behind. Run again, it resumes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small gain nothing from more
    from pipeline.engines.opening import require_engine
    from pipeline.quickstart.folder import config_text, make_quickstart

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder to make, such as opd-quickstart")
    config = config_text(root=root, seed=seed, rounds=rounds, engine=engine)
    require_engine(parse_config(config, where="--engine").rollout.engine)
    progress = make_progress(as_json=as_json)

    def report(name: str, step: int, total: int) -> None:
        if step == 1:
            progress.stop()
            progress.start(f"make {name}", total, 0)
        progress.advance()

    path = make_quickstart(folder, config, seed=seed, rounds=rounds, report=report)
    progress.stop()
    if path.read_text() != config:
        progress.note(f"{path} exists and is kept: the options of this call are not applied")
    run = load_run(str(path), None)
    drive(run, str(path), run.config.run.rounds, [], as_json=as_json)
    if not as_json:
        _epilogue(path)


def _epilogue(path: Path) -> None:
    from pipeline.runs.status import run_status

    say("")
    status = run_status(load_run(str(path), None))
    print_status(replace(status, alarms=[]))  # the run has told them at its end
    config = shlex.quote(str(path))
    say(
        "",
        "Next: another loss, whose round 0 costs no teacher tokens; the settings; your own",
        f"  opd run -c {config} --set run.name=reverse --set loss.kind=reverse_kl",
        f"  opd config show -c {config}",
        f"  open {config} and change it: give the run another name first",
    )
