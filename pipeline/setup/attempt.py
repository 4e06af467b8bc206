"""One small round of a run through every stage, in a store of its own that is deleted.

Promises: the store of the run is not written to; what the round measured becomes what the whole run
will cost.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.runs.forecast import Forecast, Rates, forecast, rates_of
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult
from pipeline.runs.run import Run
from pipeline.runs.tasks import next_round
from pipeline.shards.rollouts import read_rollout
from pipeline.stages.rounds import TrainCall, run_rounds
from pipeline.store.records import find_record
from schemas.config.run import RunConfig
from schemas.errors import DataError
from schemas.keys import manifest_key, prompts_folder
from schemas.records.runs import PromptsManifest, RolloutManifest

PROMPTS, SAMPLES, NEW_TOKENS = 8, 2, 128
"""Most prompts, samples of each, and tokens of a response."""

GATES = {"max_accuracy_drop": 1.0, "max_reverse_kl_rise": 1e6}
"""Limits of `[gate]` that no round exceeds."""


@dataclass(frozen=True)
class Timed:
    """A stage of the small round: all its seconds, and those in which it worked."""

    result: StageResult
    seconds: float
    working_s: float
    """Without what it takes to begin and to end, which a larger round pays once as well."""


class Stopwatch:
    """Progress that is passed on, and the time from a stage's first unit to its last."""

    def __init__(self, shown: Progress) -> None:
        """Pass everything on."""
        self._shown, self._begin, self._end = shown, 0.0, 0.0
        self.note, self.stop = shown.note, shown.stop

    def start(self, stage: str, total: int, done: int) -> None:
        """Begin a stage."""
        self._begin = self._end = time.monotonic()
        self._shown.start(stage, total, done)

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count units."""
        self._end = time.monotonic()
        self._shown.advance(units, tokens=tokens)

    def taken(self) -> float:
        """Return the seconds of the stage that has ended."""
        seconds, self._end = self._end - self._begin, self._begin
        return seconds


def small_settings(config: RunConfig, root: str) -> list[str]:
    """Return the `--set` items that make one small round of a run, in another root."""
    rollout, train = config.rollout, config.train
    prompts = min(PROMPTS, rollout.prompts_per_round)
    samples = min(SAMPLES, rollout.samples_per_prompt)
    small: dict[str, object] = {
        "run.rounds": 1,
        "run.admission": "'static'",
        "rollout.prompts_per_round": prompts,
        "rollout.prompts_per_unit": prompts,
        "rollout.samples_per_prompt": samples,
        "rollout.max_new_tokens": min(NEW_TOKENS, rollout.max_new_tokens),
        "train.sequences_per_step": min(prompts * samples, train.sequences_per_step),
        "train.save_steps": 0,
    }
    if config.eval is not None:
        graded = config.eval
        small["eval.max_prompts"] = min(PROMPTS, graded.max_prompts or PROMPTS)
        small["eval.samples_per_prompt"] = min(SAMPLES, graded.samples_per_prompt)
        small["eval.max_new_tokens"] = min(
            NEW_TOKENS, graded.max_new_tokens or rollout.max_new_tokens
        )
    if config.gate is not None:
        set_limits = {name: most for name, most in GATES.items() if getattr(config.gate, name)}
        small |= {f"gate.{name}": most for name, most in set_limits.items()}
    return [f"run.root={root}", *(f"{key}={value}" for key, value in small.items())]


def try_round(
    run: Run, *, train: Callable[[Progress], TrainCall], progress: Progress
) -> Iterator[Timed]:
    """Yield each stage of the small round as it ends.

    Args:
        run: the small run.
        train: gives what trains a round and tells a progress.
        progress: told of each unit.
    """
    watch = Stopwatch(progress)
    begin = time.monotonic()
    for result in run_rounds(run, 1, train=train(watch), progress=watch):
        seconds = time.monotonic() - begin
        working = watch.taken() - result.engine_start_s
        yield Timed(result, seconds, working if 0 < working <= seconds else seconds)
        begin = time.monotonic()


def whole_cost(run: Run, tried: Run, stages: Sequence[Timed]) -> Forecast:
    """Return what is left of a run, at the rates of its small round.

    Args:
        run: the run itself; nothing of it has to be there.
        tried: the small run.
        stages: of the small round.
    """
    rollout = tried.rollout(0)
    scores = [tried.score(0, name) for name in run.config.teachers]
    done = [score for score in scores if score is not None]
    if rollout is None:
        raise DataError("the small round ended without a rollout: run the command again")
    measured = rates_of(tried, 0, rollout, done)
    cut = _share_cut(tried, rollout) if _is_shorter(run, tried) else 0.0
    limit = run.config.rollout.max_new_tokens
    tokens = measured.tokens_per_row + cut * (limit - tried.config.rollout.max_new_tokens)
    longer = tokens / max(measured.tokens_per_row, 1e-9)
    rates = Rates(
        tokens_per_row=tokens,
        teacher_tokens_per_row=measured.teacher_tokens_per_row + tokens - measured.tokens_per_row,
        bytes_per_token=measured.bytes_per_token,
        seconds=_seconds(run, tried, stages, longer),
        basis="the small round" if not cut else "limits",
    )
    target = run.config.run.rounds
    return forecast(run, first=next_round(run, target), rounds=target, rates=rates)


def _is_shorter(run: Run, tried: Run) -> bool:
    return tried.config.rollout.max_new_tokens < run.config.rollout.max_new_tokens


def _share_cut(tried: Run, rollout: RolloutManifest) -> float:
    """Return the share of responses that were cut off, and would go on in the run itself."""
    reasons: list[str] = [
        reason
        for unit in rollout.units
        for reason in read_rollout(tried.storage, unit.shard, columns=("finish_reason",))
        .column("finish_reason")
        .to_pylist()
    ]
    return reasons.count("length") / max(len(reasons), 1)


def _seconds(run: Run, tried: Run, stages: Sequence[Timed], longer: float) -> dict[str, float]:
    """Return the seconds of each stage of a whole round: what begins it, and its work by rows."""
    found: dict[str, float] = {}
    for one in stages:
        rows = _rows(run, tried, one.result.stage)
        if one.result.round is None or not one.result.rows:
            continue
        work = one.working_s * longer * rows / one.result.rows
        found[one.result.stage] = (
            found.get(one.result.stage, 0.0) + one.seconds - one.working_s + work
        )
    return found


def _rows(run: Run, tried: Run, stage: str) -> float:
    """Return the rows of a stage in a whole round; of eval as often as it is asked for."""
    section, graded = run.config.rollout, run.config.eval
    if stage != "eval" or graded is None:
        return section.prompts_per_round * section.samples_per_prompt
    key = manifest_key(prompts_folder(tried.name, "eval"))
    pinned = find_record(tried.storage, key, PromptsManifest)
    there = pinned.rows if pinned is not None else PROMPTS
    prompts = min(there, graded.max_prompts or there)
    return math.ceil(prompts * graded.samples_per_prompt / graded.every_rounds)
