"""Measures what engines and learner take of a CPU's memory at the peak, in a process of its own.

`python -m tests.support.memorypeaks FOLDER` prints, for each model of `MODELS`, the bytes that
sampling, scoring and two steps of learning took beside what the process had before.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.learner.batches import plan_steps
from pipeline.learner.feed.data import RoundData
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import join_ranks
from pipeline.learner.settings import LearnerSettings
from pipeline.models.source import ModelSource
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.config.engines import EngineSection
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.fingerprint import sequence_digest
from tests.support.tiny import make_model
from tests.support.tinytables import make_scorer, rollout_table, store_rollout, store_scores

IDS, K = 20, 4
"""Ids that sequences are made of, and the teacher's top-k."""

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 64, "layers": 4, "vocab": 1000, "intermediate_size": 256},
    "large": {"hidden": 512, "layers": 4, "vocab": 32_000, "intermediate_size": 1536},
}
ROWS = {"tiny": 64, "large": 4}
PROMPT, RESPONSE = 112, 16


def engine_section() -> EngineSection:
    return EngineSection(device="cpu", batch_tokens=4096)


def train_section(name: str) -> TrainSection:
    return TrainSection(
        learning_rate=1e-3, device="cpu", sequences_per_step=ROWS[name], micro_batch_tokens=4096
    )


def peak(work: Callable[[], Any]) -> tuple[int, Any]:
    """Return the memory that work took at its peak, beside what there was, and its result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    result = work()
    return _status("VmHWM") - before, result


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def table_of(name: str) -> pa.Table:
    """Return sequences of one length."""
    random, rows = np.random.default_rng(0), ROWS[name]
    prompts = random.integers(1, IDS, (rows, PROMPT)).tolist()
    responses = random.integers(1, IDS, (rows, RESPONSE)).tolist()
    changed = {
        "prompt_ids": prompts,
        "response_ids": responses,
        "response_mask": [[True] * RESPONSE] * rows,
        "rollout_student_logprobs": [[-1.0] * RESPONSE] * rows,
        "sequence_digest": [sequence_digest(p, r) for p, r in zip(prompts, responses, strict=True)],
    }
    table = rollout_table(rows, vocab=IDS)
    for column, values in changed.items():
        place, kind = table.schema.get_field_index(column), table.schema.field(column)
        table = table.set_column(place, kind, pa.array(values, kind.type))
    return table


def measured(folder: Path, name: str) -> dict[str, int]:
    """Return the peaks of one model."""
    vocab, rows = MODELS[name]["vocab"], ROWS[name]
    source = ModelSource(str(folder / name), None, False)
    table, scorer = table_of(name), make_scorer(k=K, vocab=vocab)
    prompts = [np.array(ids, np.int32) for ids in table.column("prompt_ids").to_pylist()]

    def sampled() -> None:
        engine = open_engine(Start(source, engine_section(), dtype="float32", use="sample"), print)
        sampling = Sampling(
            max_new_tokens=RESPONSE,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            stop_token_ids=(),
            vocab_size=vocab,
        )
        engine.generate(prompts, list(range(rows)), sampling)
        engine.close()

    def scored() -> Any:
        engine = open_engine(Start(source, engine_section(), dtype="float32", use="score"), print)
        scores, *_ = score_table(table, LazyEngine(lambda: engine, print), scorer.identity)
        engine.close()
        return scores

    peaks = {"rollout": peak(sampled)[0]}
    peaks["score"], scores = peak(scored)
    storage = Storage("memory://peaks")
    rollout, stored = store_rollout(storage, [table]), store_scores(storage, [scores], scorer)
    data = RoundData(storage, rollout, {scorer.name: stored}, keep=2)

    def learned() -> None:
        settings = LearnerSettings(train_section(name), LossConfig(kind="forward_kl"))
        learner = Learner(source, settings, join_ranks("cpu"))
        lengths = data.read_lengths(oldest_round=0)
        totals, order = lengths.total_tokens_R, np.arange(rows, dtype=np.int64)
        plans = plan_steps(
            [order], totals, lengths.trained_tokens_R, per_step=rows, micro_tokens=4096, processes=1
        )
        for plan in learner.dealt(plans, totals) * 2:
            learner.step(plan, data, 1e-3)
        learner.close()

    peaks["train"] = peak(learned)[0]
    return peaks


def main(folder: Path) -> None:
    """Print the peaks of all models."""
    for name, sizes in MODELS.items():
        make_model(folder / name, max_position_embeddings=4096, **sizes)
    measured(folder, "tiny")  # what is loaded and allocated once
    print(json.dumps({name: measured(folder, name) for name in MODELS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
