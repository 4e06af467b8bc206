"""`engines`: `opd score` and `opd rollout` on vLLM, against vLLM's bare loop in the same engine.

The bare loop asks the same running vLLM for the same work with its fastest settings (flat
log-probabilities, no detokenising, final outputs only) and drops the outputs. Our side ends with a
committed shard, text for people included. Starting vLLM is in neither.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import pyarrow as pa

from benchmarks.kit.inputs import (
    Sequences,
    Size,
    make_model,
    make_scorer,
    make_sequences,
    rollout_rows,
)
from benchmarks.kit.measure import (
    Action,
    Case,
    Result,
    Timing,
    alternate,
    headline,
    speed_ratio,
    spread,
    units_per_cpu_s,
)
from benchmarks.score import Clocked
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.engines.engine import Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import engine_version
from pipeline.engines.start import Start
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.runs.plan import cut_units
from pipeline.shards.parquet import write_table
from pipeline.stages.samples import SampleJob, sample_unit
from pipeline.store.commit import content_shard, publish
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.columns import list_lengths
from schemas.config.engines import EngineSection
from schemas.fingerprint import fingerprint

TINY = Size("tiny", hidden=64, layers=2, vocab=512, head=32)
LARGE = Size("100M", hidden=640, layers=15, vocab=32_000, head=128)
"""100 million parameters, a fifth of them the embedding."""
K = 64
DTYPE = "float32"
RESPONSE = (32, 96)
"""Fewest and most tokens of a scored response."""
MAX_TOKENS = 160
BATCH_TOKENS = 2048


def run(*, quick: bool, seed: int) -> Result:
    """Measure a tiny and a 100M model; each figure is that of its worst case."""
    sizes = (TINY,) if quick else (TINY, LARGE)
    cases = [_case(size, quick=quick, seed=seed) for size in sizes]
    figures = {
        "score_ratio": headline(cases, "score_ratio", min),
        "rollout_ratio": headline(cases, "rollout_ratio", min),
        "convert_share": headline(cases, "convert_share", max),
    }
    return Result(figures, cases)


def _case(size: Size, *, quick: bool, seed: int) -> Case:
    rows, repeats = (16, 3) if quick or size is LARGE else (512, 7)
    sequences = make_sequences(rows, size.vocab, seed=seed, response=RESPONSE)
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        source = make_model(Path(name) / "model", size, seed=seed)
        section = EngineSection(engine="vllm", batch_tokens=BATCH_TOKENS)
        begin = time.perf_counter()
        start = Start(source, section, dtype=DTYPE, use="sample", max_tokens=MAX_TOKENS)
        engine = VllmEngine(start, version=engine_version("vllm"), note=warn)
        start_s = time.perf_counter() - begin
        storage = Storage(str(Path(name) / "store"))
        score = _Score(engine, storage, sequences, size)
        rollout = _Rollout(engine, storage, sequences, size)
        scoring = _alternate({"opd": score, "bare": score.bare}, repeats)
        sampling = _alternate({"opd": rollout, "bare": rollout.bare}, repeats)
        engine.close()
    return {
        "case": size.name,
        "rows": rows,
        "tokens": sequences.tokens,
        "k": K,
        "start_s": start_s,
        "score_ratio": speed_ratio(scoring["opd"], scoring["bare"]),
        "rollout_ratio": speed_ratio(sampling["opd"], sampling["bare"]),
        "convert_share": spread(score.shares[1:]),
        **{f"score_{n}_tokens_per_cpu_s": units_per_cpu_s(t) for n, t in scoring.items()},
        **{f"rollout_{n}_tokens_per_cpu_s": units_per_cpu_s(t) for n, t in sampling.items()},
    }


def _alternate(sides: dict[str, Action], repeats: int) -> dict[str, list[Timing]]:
    alternate(sides, 1)  # the first call of each is slower
    return alternate(sides, repeats)


class _Score:
    """A teacher pass over a unit of which nothing is cached."""

    def __init__(
        self, engine: VllmEngine, storage: Storage, sequences: Sequences, size: Size
    ) -> None:
        self._engine, self._sequences, self._calls = engine, sequences, 0
        self._scorer = make_scorer(vocab=size.vocab, k=K)
        self._cache = ScoreCache(storage, self._scorer.identity, warn)
        self._table = rollout_rows(sequences)
        self.shares: list[float] = []
        """CPU seconds from the engine's output to the committed shard, over those of the engine."""

    def __call__(self) -> int:
        """Do as `opd score`."""
        clock = Clocked(self._engine)
        self._calls += 1
        lazy = LazyEngine(lambda: clock, warn)
        table, tokens = score_table(self._table, lazy, self._scorer.identity)
        unit = fingerprint([self._calls, *table.column("sequence_digest").to_pylist()])
        self._cache.publish(unit, table, Origin("bench/0", teacher_tokens=tokens, reused_rows=0))
        self.shares.append(clock.convert_share())
        return tokens

    def bare(self) -> int:
        """Let vLLM return the top-k of every position."""
        from vllm import SamplingParams

        asked = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=K, flat_logprobs=True, detokenize=False
        )
        pairs = zip(self._sequences.prompts, self._sequences.responses, strict=True)
        prompts = [{"prompt_token_ids": np.concatenate(pair).tolist()} for pair in pairs]
        _bare(self._engine).generate(prompts, asked, use_tqdm=False)
        return self._sequences.tokens


class _Rollout:
    """A unit of samples."""

    def __init__(
        self, engine: VllmEngine, storage: Storage, sequences: Sequences, size: Size
    ) -> None:
        self._engine, self._storage, self._calls = engine, storage, 0
        self._prompts = sequences.prompts
        self._job = _job(sequences.prompts, max_new_tokens=RESPONSE[1] - RESPONSE[0])
        self._tokenizer = _tokenizer(size.vocab)
        rows = np.arange(len(self._prompts))
        (self._unit,) = cut_units(
            rows, np.zeros_like(rows), samples_per_prompt=1, prompts_per_unit=len(rows)
        )

    def __call__(self) -> int:
        """Do as `opd rollout`."""
        self._calls += 1
        table = sample_unit(self._job, self._unit, self._engine, self._tokenizer)
        data = write_table(table, self._job.metadata(self._engine), token_column="response_ids")
        tokens = int(list_lengths(table, "response_ids").sum())
        shard = content_shard("rollouts", data, rows=table.num_rows, tokens=tokens)
        name = f"{self._calls:05d}"
        publish(self._storage, "bench", name, shard=shard, data=data, fingerprint="bench")
        return tokens

    def bare(self) -> int:
        """Let vLLM sample with one seed for each prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = [
            SamplingParams(
                temperature=1.0,
                max_tokens=self._job.sampling.max_new_tokens,
                ignore_eos=True,
                seed=row,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for row in range(len(self._prompts))
        ]
        prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in self._prompts]
        found = _bare(self._engine).generate(prompts, asked, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in found)


def _bare(engine: VllmEngine) -> Any:
    """Return vLLM's own object inside an engine."""
    return engine._host._llm


def _job(prompts: Sequence[Any], *, max_new_tokens: int) -> SampleJob:
    absent = pa.nulls(len(prompts), pa.string())
    table = pa.table(
        {
            "prompt_id": [str(row) for row in range(len(prompts))],
            "prompt_ids": pa.array([p.tolist() for p in prompts], pa.list_(pa.int32())),
            "teacher": absent,
            "weight": pa.array(np.ones(len(prompts), np.float32)),
            "reference": absent,
            "metadata": absent,
        }
    )
    sampling = Sampling(1.0, 1.0, 0, max_new_tokens, stop_token_ids=())
    return SampleJob(
        label="bench",
        round_index=0,
        policy_version="bench",
        seed=0,
        default_teacher="main",
        sampling=sampling,
        prompts=table,
    )


def _tokenizer(vocab: int) -> Any:
    """Return a tokenizer of one word for each id."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{word}": word for word in range(vocab)}
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
