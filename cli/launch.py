"""Start of the learner's processes on this machine, through torch's own launcher."""

import os
import sys
from pathlib import Path

from pipeline.run import Run
from schemas.errors import ConfigError, OpdError


def needs_launch(run: Run) -> bool:
    """Return whether processes must be started: several are wanted and no launcher did it."""
    return run.config.train.num_processes > 1 and "RANK" not in os.environ


def launch_learner(
    run: Run,
    config: Path,
    round_index: int,
    overrides: list[str],
    *,
    as_json: bool,
    quiet: bool = False,
) -> None:
    """Run `opd train` in `train.num_processes` processes and wait for them.

    Args:
        run: the run.
        config: its TOML file.
        round_index: round to train.
        overrides: `--set` items to pass on.
        as_json: pass `--json` on.
        quiet: keep the processes' stdout away from ours.

    Raises:
        OpdError: a process failed; the exit code is that process's.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    arguments = ["-m", "cli.main", "train", "-c", str(config), "--round", str(round_index)]
    for item in overrides:
        arguments += ["--set", item]
    if as_json and not quiet:
        arguments.append("--json")
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=run.config.train.num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(settings, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise _failed(failure.exitcode) from None
    except SignalException:
        raise OpdError("interrupted while the learner's processes ran") from None


def _failed(code: int) -> OpdError:
    kinds = {kind.exit_code: kind for kind in OpdError.__subclasses__()}
    kind = kinds.get(code, OpdError)
    text = f"a process of the learner ended with exit code {code}; its message is above"
    return kind(text) if code != ConfigError.exit_code else ConfigError(text)
