"""`opd cache verify --rescore`: stored scores held against the teacher, in words."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.options import load_run
from cli.output import make_progress, print_json, print_table
from cli.terminal import say
from schemas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.upkeep.rescore import Rescored


def verify_rescored(
    config: str | None,
    overrides: list[str] | None,
    scorer: str | None,
    *,
    rows: int,
    seed: int,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Score stored rows again, print how far they are apart, and end with the exit code.

    Raises:
        ConfigError: there is no configuration, and so no teacher.
    """
    from pipeline.cache.scorers import find_scorer_key
    from pipeline.upkeep.rescore import rescore

    if config is None:
        raise ConfigError("--rescore needs --config FILE: its teacher scores the rows")
    run, progress = load_run(config, overrides), make_progress(as_json=as_json)
    key = find_scorer_key(run.storage, scorer)
    found = rescore(run, key, rows, seed=seed, progress=progress)
    worst = found.drift.token_logprob.max
    code = DataError.exit_code if tolerance is not None and worst > tolerance else 0
    if as_json:
        head = {"root": run.storage.root, **asdict(found)}
        print_json({**head, "seed": seed, "tolerance": tolerance, "exit_code": code})
    else:
        _print(found)
        if code:
            say(f"the largest drift of a sampled token, {worst:.3g} nats, is above {tolerance}")
    raise typer.Exit(code)


def _print(found: "Rescored") -> None:
    drift = found.drift
    title = (
        f"scorer {found.scorer[:8]}, {found.rows:,} rows, {found.tokens:,} tokens: stored "
        f"({', '.join(found.stored.values())}) against {found.teacher} now "
        f"({', '.join(found.now.values())}), nats"
    )
    spreads = {"sampled token": drift.token_logprob, "top-k, common ids": drift.topk_logprobs}
    cells = [[name, *map(_nats, (s.mean, s.p99, s.max))] for name, s in spreads.items()]
    cells.append(["KL(stored‖new)", _nats(drift.kl_mean), "", _nats(drift.kl_max)])
    print_table(title, ("|difference|", "mean", "99 %", "max"), cells)
    say(f"the same top-k ids at {drift.same_topk:.2%} of the positions")


def _nats(value: float) -> str:
    return f"{value:.2e}"
