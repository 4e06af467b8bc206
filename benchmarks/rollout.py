"""`rollout`: sampling with the `hf` engine, against transformers' own `generate`.

Both sides sample the same prompts with the same settings; lengths are counted, stop token included.
The engine also returns the log-probability of each token, `generate` does not.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch

from benchmarks.kit.inputs import MEDIUM, TINY, Size, engine_section, make_model, make_sequences
from benchmarks.kit.measure import (
    Action,
    Case,
    Result,
    alternate,
    headline,
    speed_ratio,
    units_per_cpu_s,
    wall_seconds,
)
from pipeline.engines.engine import Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from schemas.columns import Ids

BATCH_TOKENS = 1 << 20
"""All prompts are one batch, on both sides."""

STOP_SHARE = 32
"""With stops, one id in so many ends a response: the share of steps at which a row ends."""


def run(*, quick: bool, seed: int) -> Result:
    """Measure tiny and 20M, responses of equal and of unequal length; the worst case counts."""
    sizes = (TINY,) if quick else (TINY, MEDIUM)
    cases = [
        _case(size, stops=stops, quick=quick, seed=seed)
        for size in sizes
        for stops in (False, True)
    ]
    return Result({"rollout_ratio": headline(cases, "rollout_ratio", min)}, cases)


def _case(size: Size, *, stops: bool, quick: bool, seed: int) -> Case:
    rows, new_tokens = (8, 16) if quick else (16, 32)
    repeats = 5 if size is TINY and not quick else 3
    prompts = make_sequences(rows, size.vocab, seed=seed, response=(1, 1)).prompts
    ends = tuple(range(1, size.vocab, STOP_SHARE)) if stops else (size.vocab,)
    sampling = Sampling(1.0, 1.0, 0, new_tokens, ends)
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        source = make_model(Path(name), size, seed=seed)
        ours, theirs = _Ours(source, prompts, sampling), _Theirs(source, prompts, sampling)
    sides: dict[str, Action] = {"opd": ours, "transformers": theirs}
    alternate(sides, 1)
    timings = alternate(sides, repeats)
    return {
        "case": f"{size.name}, {'unequal' if stops else 'equal'} lengths",
        "prompts": rows,
        "max_new_tokens": new_tokens,
        "rollout_ratio": speed_ratio(timings["opd"], timings["transformers"]),
        **{f"{name}_tokens_per_cpu_s": units_per_cpu_s(t) for name, t in timings.items()},
        **{f"{name}_wall_s": wall_seconds(t) for name, t in timings.items()},
    }


class _Ours:
    """The engine; each call samples with other seeds and returns the tokens sampled."""

    def __init__(self, source: ModelSource, prompts: list[Ids], sampling: Sampling) -> None:
        section = engine_section(batch_tokens=BATCH_TOKENS)
        start = Start(source, section, dtype="float32", use="sample")
        self._engine = open_engine(start, warn)
        self._prompts, self._sampling, self._calls = prompts, sampling, 0

    def __call__(self) -> int:
        rows, self._calls = len(self._prompts), self._calls + 1
        seeds = range(self._calls * rows, (self._calls + 1) * rows)
        samples = self._engine.generate(self._prompts, seeds, self._sampling)
        return sum(len(sample.ids) for sample in samples)


class _Theirs:
    """`generate` of transformers; each call samples anew and returns the tokens sampled."""

    def __init__(self, source: ModelSource, prompts: list[Ids], sampling: Sampling) -> None:
        from transformers import GenerationConfig

        self._model: Any = load_model(source, dtype="float32", device="cpu")
        self._ids, self._mask = _left_padded(prompts)
        self._ends = torch.tensor(sampling.stop_token_ids)
        make: Any = GenerationConfig
        self._settings = make(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(sampling.stop_token_ids),
            pad_token_id=0,
        )

    @torch.inference_mode()
    def __call__(self) -> int:
        found = self._model.generate(
            input_ids=self._ids, attention_mask=self._mask, generation_config=self._settings
        )
        new = found[:, self._ids.shape[1] :]
        ended = torch.isin(new, self._ends).int()
        return int((ended.cumsum(1) - ended == 0).sum())


def _left_padded(prompts: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(p) for p in prompts)
    ids = np.stack([np.pad(p, (width - len(p), 0)) for p in prompts]).astype(np.int64)
    mask = np.stack([np.pad(np.ones(len(p), np.int64), (width - len(p), 0)) for p in prompts])
    return torch.from_numpy(ids), torch.from_numpy(mask)
