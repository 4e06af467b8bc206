"""How long a learner waits for its data: a round read from S3 over a slow line, a device assumed.

The device is a pause for as long as one of `DEVICE_TOKENS_PER_S` would compute, so that it is the
feed that is measured. Needs an S3 server that this machine can run, as the tests have.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from warnings import warn

from benchmarks.kit.inputs import (
    TEACHER,
    TINY,
    engine_section,
    make_model,
    make_scorer,
    make_sequences,
    rollout_rows,
    score_manifest,
    store_rollout,
    store_shard,
)
from benchmarks.kit.measure import Case, peak_bytes, spread
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.learner.batches import epoch_order, plan_steps
from pipeline.learner.feed.data import RoundData
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import join_ranks
from pipeline.learner.settings import LearnerSettings
from pipeline.models.source import ModelSource
from pipeline.shards.scores import write_scores
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest
from schemas.records.shards import UnitShard
from tests.support.faults import FaultProxy
from tests.support.servers import BUCKET, SeaweedServer

LINE_BYTES_PER_S = 50e6
DEVICE_TOKENS_PER_S = 100_000
"""What a GPU of now trains of a student of 0.6 billion parameters."""

K, ROWS, UNITS, PER_STEP, GROUP = 64, 32, 250, 8, 2
"""Top-k; rows of a shard; shards; rows of a step; shards that are shuffled together."""

PARTS = 5
"""Parts of the round over which the share is told, each as many steps."""


def feeding_case(*, quick: bool, seed: int) -> Case:
    """Return which share of its time a learner waits for data, and how its memory grows."""
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name, _slow_s3(Path(name)) as storage:
        student = make_model(Path(name) / "student", TINY, seed=seed)
        stored = stored_round(storage, student, units=16 if quick else UNITS, seed=seed)
        data = RoundData(storage, *stored, keep=2 * GROUP)
        learner = Learner(student, _settings(), join_ranks("cpu"))
        try:
            return _feed(learner, data, seed=seed)
        finally:
            learner.close()


def _feed(learner: Learner, data: RoundData, *, seed: int) -> Case:
    """Take the micro-batches of a round, one a step, with a pause after each but the first."""
    lengths = data.read_lengths(oldest_round=0)
    order = epoch_order(lengths.unit_rows_U, seed=seed, epoch=0, shuffle_shards=GROUP)
    plans = plan_steps(
        [order],
        lengths.total_tokens_R,
        lengths.trained_tokens_R,
        per_step=PER_STEP,
        micro_tokens=4_096,
        processes=1,
    )
    shares, size = [], len(plans) // PARTS
    with learner.reading_ahead(data, plans) as ahead:
        ahead.take()
        first_s, begun_s, memory = ahead.waited_s, time.perf_counter(), 0
        for part in range(PARTS):
            started_s, waited_s = time.perf_counter(), ahead.waited_s
            for plan in plans[max(1, part * size) : (part + 1) * size]:
                for _ in plan.micro:
                    time.sleep(ahead.take()[0].numel() / DEVICE_TOKENS_PER_S)
            shares.append((ahead.waited_s - waited_s) / (time.perf_counter() - started_s))
            memory = memory or peak_bytes()
        share = (ahead.waited_s - first_s) / (time.perf_counter() - begun_s)
    return {
        "case": "rows from S3 at 50 MB/s",
        "steps": len(plans),
        "first_batch_s": first_s,
        "data_wait_share": share,
        "parts_wait_share": spread(shares),
        "memory_growth": peak_bytes() / memory,
    }


def _settings() -> LearnerSettings:
    train = TrainSection(learning_rate=1e-5, sequences_per_step=PER_STEP, device="cpu")
    return LearnerSettings(train, LossConfig(kind="forward_kl"))


def stored_round(
    storage: Storage, teacher: ModelSource, *, rows: int = ROWS, units: int, seed: int
) -> tuple[RolloutManifest, dict[str, ScoreManifest]]:
    """Return the manifests of a round of which every unit has the same rows, each read as its own.

    Args:
        storage: where it is stored.
        teacher: who scores it.
        rows: of a shard.
        units: shards of it.
        seed: of the rows.
    """
    sequences = make_sequences(rows, TINY.vocab, seed=seed, response=(160, 480))
    table = rollout_rows(sequences)
    section = engine_section(batch_tokens=4_096)
    engine = open_engine(Start(teacher, section, dtype="float32", use="score"), warn)
    made = make_scorer(vocab=TINY.vocab, k=K)
    scorer = replace(made, identity=made.identity.model_copy(update={"codec": "packed-v1"}))
    scores, _ = score_table(table, LazyEngine(lambda: engine, warn), scorer.identity)
    data = write_scores(scores, scorer.identity)
    shard = store_shard(storage, f"{scorer.folder}/data", data, scores, "token_logprob")
    rollout = store_rollout(storage, [table] * units)
    scored = [UnitShard(unit=unit.unit, shard=shard) for unit in rollout.units]
    return rollout, {TEACHER: score_manifest(rollout, scored, scorer.key)}


@contextmanager
def _slow_s3(folder: Path) -> Iterator[Storage]:
    """Give a root on an S3 server of our own, behind a slow line."""
    server = SeaweedServer(folder / "seaweed")
    server.start()
    before = dict(os.environ)
    try:
        proxy = FaultProxy(server.endpoint, bytes_per_s=LINE_BYTES_PER_S)
        try:
            os.environ.update(server.account.at(proxy.endpoint).environ())
            yield Storage(f"s3://{BUCKET}/feeding")
        finally:
            proxy.close()
    finally:
        server.kill()
        os.environ.clear()
        os.environ.update(before)
