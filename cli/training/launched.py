"""The train stage in several processes, started from here."""

import sys

from cli.terminal import say
from pipeline.learner.launch import launch_learner, needs_launch
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult
from pipeline.runs.run import Run
from schemas.errors import DataError


def train_one(
    run: Run, config: str, index: int, *, overrides: list[str], progress: Progress, as_json: bool
) -> StageResult:
    """Train a round, in this process or in several, and return its result."""
    from pipeline.stages.train import finished_result, run_train

    if not needs_launch(run):
        return run_train(run, index, progress=progress)
    if run.train(index) is None:
        launch(run, config, index, overrides, as_json=as_json, quiet=True)
    manifest = run.train(index)
    if manifest is None:
        raise DataError(f"the learner of round {index} ended without a manifest: see its output")
    return finished_result(run, manifest)


def launch(
    run: Run, config: str, index: int, overrides: list[str], *, as_json: bool, quiet: bool = False
) -> None:
    """Train a round in several processes, and end as the main one of them does.

    Args:
        run: the run.
        config: its TOML file.
        index: round to train.
        overrides: `--set` items to pass on.
        as_json: pass `--json` on.
        quiet: drop what the processes print to stdout, unless it is the main one's error.
    """
    settings = [word for item in overrides for word in ("--set", item)]
    arguments = ["-P", "-m", "cli.main", "train", "-c", config, "--round", str(index), *settings]
    done = launch_learner(run, index, [*arguments, "--json"] if as_json else arguments)
    if done.printed and (done.exit_code or not quiet):
        say(*done.printed.removesuffix("\n").split("\n"))
    if done.exit_code:
        sys.exit(done.exit_code)
