"""An engine proves itself before a stage samples from it: what it draws is held against its scores.

Sampling runs on a cache, on padded rows and on rows that end; scores of one row at a time need none
of these. Promises: an engine whose draws its own scores do not bear out, or whose scores a
checkpoint's probe does not, is closed before anything is sampled; a few hundred tokens are read.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.borders import borders_of
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.weightcheck import probe_scores
from pipeline.models.border import explained
from pipeline.models.look.settings import CONFIG
from pipeline.models.source import load_settings
from pipeline.scores.drift import Gap, gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.columns import Floats, Ids
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal

NEW_TOKENS = 4
"""Tokens that are drawn of each row."""

SHORT = (3, 3, 8)
"""Prompt tokens of the rows that every engine draws: two of one length, one that pads them."""

MOST_TOKENS = 700
"""Prompt tokens of all rows; a border that is further away is out of reach."""

ADVICE = "Set the engine of rollout and eval to another one, or choose another model"


def proved_engine(start: Start, note: Note, *, probe: Probe | None = None) -> Engine:
    """Return an engine that holds a model, and samples what that model says.

    Args:
        start: which engine, and the model.
        note: told of a start that takes long.
        probe: what the checkpoint itself says of a few sequences, where it came with that.

    Raises:
        ConfigError: it does not, or it cannot be opened.
        CapacityError: the model does not fit.
        StorageError: no server answers.
    """
    engine = open_engine(start, note)
    try:
        _prove(engine, start, probe)
    except BaseException:
        engine.close()
        raise
    return engine


def proof_key(start: Start) -> Hashable:
    """Return what a proof of engine `hf` holds for: every model of the same settings.

    Args:
        start: with a model whose files are on this machine.
    """
    settings = (Path(start.source.location) / CONFIG).read_text(encoding="utf-8")
    section = start.section
    batches = (section.device, section.batch_tokens, section.logit_chunk_mb)
    return ("proof", settings, batches, start.dtype, start.max_tokens)


def drawn_gap(engine: Engine, prompts: Sequence[Ids], tokens: int) -> Gap:
    """Return how far what an engine draws is from its scores of the same rows, one at a time.

    The rows are drawn twice: to their end, and once more where one ends early. What is drawn again
    has been scored.
    """
    plain, seeds = Sampling(1.0, 1.0, 0, tokens, ()), range(len(prompts))
    whole = engine.generate(prompts, seeds, plain)
    early = int(whole[0].ids[tokens // 2])
    ended = engine.generate(prompts, seeds, replace(plain, stop_token_ids=(early,)))
    scored = [
        _scored(engine, prompt, sample) for prompt, sample in zip(prompts, whole, strict=True)
    ]
    again = [
        found[: len(mine.ids)]
        if np.array_equal(mine.ids, first.ids[: len(mine.ids)])
        else _scored(engine, prompt, mine)
        for prompt, mine, first, found in zip(prompts, ended, whole, scored, strict=True)
    ]
    drawn = np.concatenate([sample.logprobs for sample in (*whole, *ended)])
    return gap_of(drawn, np.concatenate([*scored, *again]))


def _scored(engine: Engine, prompt: Ids, sample: Sample) -> Floats:
    """Return an engine's scores of one row."""
    found = engine.score([prompt], [sample.ids], signal=Signal(1), vocab_size=engine.vocab_size)
    return found.token_logprob


def _prove(engine: Engine, start: Start, probe: Probe | None) -> None:
    words = f"engine {engine.name!r} cannot sample from {start.source.words}"
    longest = start.max_tokens or engine.context_length - 1
    prompts = _prompts(engine, load_settings(start.source), min(longest, engine.context_length))
    while prompts:
        try:
            with explained(words, advice=ADVICE):
                gap = drawn_gap(engine, prompts, NEW_TOKENS)
        except CapacityError:
            if not engine.shrink():
                raise
            continue
        _check(gap, start.dtype, f"{words}: its draws are {gap.words}, away from its own scores")
        break
    if probe is not None and engine.name != "hf":
        gap = gap_of(probe_scores(engine, probe), probe.logprobs_T)
        _check(gap, start.dtype, f"{words}: its scores are {gap.words}, away from transformers'")


def _check(gap: Gap, dtype: str, words: str) -> None:
    limit = noise_limit(dtype)
    found, kind = (gap.max, "at most") if dtype == "float32" else (gap.mean, "on average")
    if not found <= limit:  # NaN is refused
        raise ConfigError(
            f"{words}, where {limit:.1e} {kind} would pass for rounding in {dtype}. Nothing was "
            f"sampled. {ADVICE}"
        )


def _prompts(engine: Engine, settings: Any, longest: int) -> list[Ids]:
    """Return prompts of a few lengths: short ones, and those that cross a border when drawn."""
    room = longest - NEW_TOKENS
    lengths = [length for length in SHORT if length <= room]
    for border in borders_of(settings.get_text_config()):
        if max(SHORT) < border <= room and sum(lengths) + border <= MOST_TOKENS:
            lengths.append(border - 1)
    random = np.random.default_rng(0)
    return [random.integers(0, engine.vocab_size, n).astype(np.int32) for n in lengths]
