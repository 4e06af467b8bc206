"""`score`: the teacher pass through the engine and the cache, against the bare loop.

The bare loop runs the same model on the same batches and keeps top-k and sampled token only.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.kit.inputs import (
    MEDIUM,
    TINY,
    Sequences,
    Size,
    engine_section,
    make_model,
    make_scorer,
    make_sequences,
    rollout_rows,
    store_shard,
)
from benchmarks.kit.measure import (
    MIN_CPU_S,
    Action,
    Case,
    Result,
    Spread,
    alternate,
    headline,
    speed_ratio,
    spread,
    units_per_cpu_s,
    wall_seconds,
)
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.loading import load_model
from pipeline.models.padding import length_batches
from pipeline.scores.scores import Scores
from pipeline.shards.scores import write_scores
from pipeline.store.records import create_record
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.columns import Ids
from schemas.fingerprint import fingerprint
from schemas.keys import commit_key
from schemas.records.scores import CacheCommit
from schemas.scoresignal import Signal

BATCH_TOKENS = 2048
K = 64
DTYPE = "float32"


class Clocked:
    """An engine that adds up the CPU seconds spent in it.

    Attributes:
        cpu_s: spent while it scored.
        returned_s: CPU seconds of this process when it last gave scores.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine
        self.name, self.version = engine.name, engine.version
        self.vocab_size, self.context_length = engine.vocab_size, engine.context_length
        self.cpu_s = self.returned_s = 0.0

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return what the engine generates."""
        return self._engine.generate(prompts, seeds, sampling)

    def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], **kwargs: Any) -> Scores:
        """Return the engine's scores."""
        begin = time.process_time()
        scores = self._engine.score(prompts, responses, **kwargs)
        self.returned_s = time.process_time()
        self.cpu_s += self.returned_s - begin
        return scores

    def convert_share(self) -> float:
        """Return the CPU seconds since it gave scores, over those spent in it."""
        return (time.process_time() - self.returned_s) / max(self.cpu_s, MIN_CPU_S)

    def shrink(self) -> bool:
        """Return that there is no less to try."""
        return False

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


@torch.inference_mode()
def bare_score(model: Any, sequences: Sequences, k: int) -> int:
    """Return the tokens read by a plain loop that keeps top-k and sampled token."""
    prompts, responses = sequences.prompts, sequences.responses
    lengths = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    for rows in length_batches(lengths, BATCH_TOKENS):
        ids = [torch.from_numpy(np.concatenate([prompts[i], responses[i]])).long() for i in rows]
        batch = pad_sequence(ids, batch_first=True)
        place, tokens = torch.arange(batch.shape[1])[None], torch.from_numpy(lengths[rows])[:, None]
        starts = torch.tensor([len(prompts[i]) for i in rows])[:, None]
        hidden = model.model(
            input_ids=batch, attention_mask=(place < tokens).long(), use_cache=False
        )
        states = hidden.last_hidden_state[(place >= starts - 1) & (place < tokens - 1)]
        logits = model.lm_head(states)
        log_z = logits.logsumexp(-1, keepdim=True)
        top = logits.topk(k, dim=-1)
        own = torch.cat([row[start:] for row, start in zip(ids, starts[:, 0], strict=True)])
        kept = (top.indices, top.values - log_z, logits.gather(-1, own[:, None]) - log_z)
        _ = [tensor.numpy() for tensor in kept]
    return sequences.tokens


def run(*, quick: bool, seed: int) -> Result:
    """Measure a tiny and a 20M teacher; the figures are the worst of the cases."""
    sizes = (TINY,) if quick else (TINY, MEDIUM)
    cases = [_case(size, quick=quick, seed=seed) for size in sizes]
    figures = {
        "score_ratio": headline(cases, "score_ratio", min),
        "convert_share": headline(cases, "convert_share", max),
    }
    return Result(figures, cases)


def _case(size: Size, *, quick: bool, seed: int) -> Case:
    rows, repeats = (16 if quick or size is MEDIUM else 512), (3 if quick else 5)
    sequences = make_sequences(rows, size.vocab, seed=seed, response=(32, 96))
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        source = make_model(Path(name) / "model", size, seed=seed)
        section = engine_section(batch_tokens=BATCH_TOKENS)
        engine = open_engine(Start(source, section, dtype=DTYPE, use="score"), warn)
        model = load_model(source, dtype=DTYPE, device="cpu")

        def ours() -> int:
            engine.score(
                sequences.prompts, sequences.responses, signal=Signal(K), vocab_size=size.vocab
            )
            return sequences.tokens

        sides: dict[str, Action] = {"opd": ours, "bare": partial(bare_score, model, sequences, K)}
        alternate(sides, 1)
        timings = alternate(sides, repeats)
        shares = _convert_shares(
            Storage(str(Path(name) / "store")), engine, sequences, size, repeats=repeats
        )
    return {
        "case": size.name,
        "rows": rows,
        "tokens": sequences.tokens,
        "k": K,
        "score_ratio": speed_ratio(timings["opd"], timings["bare"]),
        "convert_share": shares,
        "opd_tokens_per_cpu_s": units_per_cpu_s(timings["opd"]),
        "bare_tokens_per_cpu_s": units_per_cpu_s(timings["bare"]),
        "opd_wall_s": wall_seconds(timings["opd"]),
        "bare_wall_s": wall_seconds(timings["bare"]),
    }


def _convert_shares(
    storage: Storage, engine: Engine, sequences: Sequences, size: Size, *, repeats: int
) -> Spread:
    """Return the CPU seconds from the engine's output to committed bytes, over the engine's."""
    table = rollout_rows(sequences)
    scorer = make_scorer(vocab=size.vocab, k=K)

    def share(repeat: int) -> float:
        clock = Clocked(engine)
        scores, tokens = score_table(table, LazyEngine(lambda: clock, warn), scorer.identity)
        data = write_scores(scores, scorer.identity)
        shard = store_shard(storage, f"{scorer.folder}/data", data, scores, "token_logprob")
        unit = fingerprint([repeat, *scores.column("sequence_digest").to_pylist()])
        commit = CacheCommit(
            unit=unit,
            shard=shard,
            fingerprint=scorer.key,
            attempt="bench",
            paid_by="bench/0000",
            teacher_tokens=tokens,
            reused_rows=0,
        )
        create_record(storage, commit_key(scorer.folder, unit), commit)
        return clock.convert_share()

    return spread([share(repeat) for repeat in range(repeats + 1)][1:])
