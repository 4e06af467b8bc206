"""What ranks on one machine pay together to read and decode a round, sharing units or each alone.

Ranks are processes that take the rows of their micro-batches and meet at every step, as a learner's
do; nothing is trained, so that it is reading and decoding that is measured. Each has decoded a unit
before: what a process pays once is not counted.
"""

import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.feeding import GROUP, stored_round
from benchmarks.kit.inputs import TINY, make_model
from benchmarks.kit.measure import Case, spread
from pipeline.learner.batches import StepPlan, epoch_order, plan_steps
from pipeline.learner.feed.data import RoundData
from pipeline.learner.machine.units import SharedUnits
from pipeline.store.storage import Storage
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest

RANKS, UNITS, REPEATS = 4, 12, 3
"""Ranks of the last case, twice as many as of the one before it; shards; repeats."""

ROWS, PER_STEP = 256, 64
"""Rows of a shard, as many as `rollout.prompts_per_unit` makes; rows of a step."""


@dataclass(frozen=True)
class _Round:
    """A stored round, and how it is taken."""

    root: str
    rollout: RolloutManifest
    scores: dict[str, ScoreManifest]
    plans: list[StepPlan]
    shared: str | None
    """Folder in which ranks share units; None where each makes its own."""


_Stored = tuple[RolloutManifest, dict[str, ScoreManifest]]


def decoding_cases(*, quick: bool, seed: int) -> list[Case]:
    """Return what a round costs 1, 2 and 4 ranks, over what it costs one."""
    ranks = [2] if quick else [2, RANKS]
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        storage = Storage(f"{name}/store")
        teacher = make_model(Path(name) / "teacher", TINY, seed=seed)
        stored = stored_round(storage, teacher, rows=32 if quick else ROWS, units=UNITS, seed=seed)
        return [
            _case(Path(name), storage, stored, count, repeats=1 if quick else REPEATS, seed=seed)
            for count in ranks
        ]


def _case(
    folder: Path, storage: Storage, stored: _Stored, count: int, *, repeats: int, seed: int
) -> Case:
    lengths = RoundData(storage, *stored, keep=1).read_lengths(oldest_round=0)
    order = epoch_order(lengths.unit_rows_U, seed=seed, epoch=0, shuffle_shards=GROUP)

    def cpu_s(ranks: int, *, share: bool) -> float:
        plans = plan_steps(
            [order],
            lengths.total_tokens_R,
            lengths.trained_tokens_R,
            per_step=PER_STEP,
            micro_tokens=4_096,
            processes=ranks,
        )
        with tempfile.TemporaryDirectory(dir=folder) as shared:
            place = shared if share else None
            return sum(_ranks(_Round(storage.root, *stored, plans, place)))

    one = [cpu_s(1, share=False) for _ in range(repeats)]
    found = {share: [cpu_s(count, share=share) for _ in range(repeats)] for share in (True, False)}
    tokens = int(lengths.trained_tokens_R.sum())
    return {
        "case": f"{count} ranks on one machine",
        "ranks": count,
        "trained_tokens": tokens,
        "one_rank_cpu_s": spread(one),
        "decode_cpu_ratio": spread([a / b for a, b in zip(found[True], one, strict=True)]),
        "alone_cpu_ratio": spread([a / b for a, b in zip(found[False], one, strict=True)]),
    }


def _ranks(work: _Round) -> list[float]:
    """Return the CPU seconds of each rank."""
    count = len(work.plans[0].micro[0])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    meeting, results = context.Barrier(count), context.SimpleQueue()
    ranks = [
        context.Process(target=_take, args=(work, rank, meeting, results)) for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    found: list[float] = [results.get() for _ in ranks]
    for rank in ranks:
        rank.join()
    return found


def _take(work: _Round, rank: int, meeting: Barrier, results: Any) -> None:
    """Take the rows of a rank, step by step with the others; put the CPU seconds it took."""
    share = None if work.shared is None else SharedUnits(Path(work.shared), keep=2 * GROUP).get
    data = RoundData(Storage(work.root), work.rollout, work.scores, keep=2 * GROUP, share=share)
    RoundData(Storage(work.root), work.rollout, work.scores, keep=1).batch(np.zeros(1, np.int64))
    mine = [[micro[rank] for micro in plan.micro if len(micro[rank])] for plan in work.plans]
    meeting.wait()
    begun_s = time.process_time()
    with data.reading_ahead([rows for step in mine for rows in step]):
        for step in mine:
            for rows in step:
                data.batch(rows)
            meeting.wait()
    results.put(time.process_time() - begun_s)
