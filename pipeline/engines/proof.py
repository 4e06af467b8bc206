"""An engine proves itself before a stage samples from it: what it draws is held against its scores.

Sampling runs on a cache, on padded rows and on rows that end; scores of one row at a time need none
of these. Promises: an engine whose draws its own scores do not bear out, or whose scores a
checkpoint's probe does not, is closed before anything is sampled; a few hundred tokens are read,
and the longest row that may be asked for, where that is cheap.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.reach import NEAR_DRAWN, PAST, SHORT_ROW, named_borders, reach_of
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.weightcheck import probe_scores
from pipeline.models.border import explained
from pipeline.models.look.settings import CONFIG
from pipeline.models.source import whole_settings
from pipeline.scores.drift import Gap, gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.columns import Floats, Ids
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal

NEW_TOKENS = 4
"""Tokens that are drawn of each row."""

SHORT = (3, 3, 8)
"""Prompt tokens of the rows that every engine draws: two of one length, one that pads them."""

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
    scored = _scores(engine, prompts, whole)
    again = [
        found[: len(mine.ids)]
        if np.array_equal(mine.ids, first.ids[: len(mine.ids)])
        else _scored(engine, prompt, mine)
        for prompt, mine, first, found in zip(prompts, ended, whole, scored, strict=True)
    ]
    drawn = np.concatenate([sample.logprobs for sample in (*whole, *ended)])
    return gap_of(drawn, np.concatenate([*scored, *again]))


def far_gap(engine: Engine, prompt: Ids, tokens: int) -> Gap:
    """Return the same of one long row that is drawn beside a short one, once.

    Args:
        engine: the engine.
        prompt: of the long row.
        tokens: that are drawn of each.
    """
    both = [prompt, prompt[: SHORT[0]]]
    drawn = engine.generate(both, range(len(both)), Sampling(1.0, 1.0, 0, tokens, ()))
    mine = np.concatenate([sample.logprobs for sample in drawn])
    return gap_of(mine, np.concatenate(_scores(engine, both, drawn)))


def _scores(engine: Engine, prompts: Sequence[Ids], samples: Sequence[Sample]) -> list[Floats]:
    return [_scored(engine, p, sample) for p, sample in zip(prompts, samples, strict=True)]


def _scored(engine: Engine, prompt: Ids, sample: Sample) -> Floats:
    """Return an engine's scores of one row."""
    found = engine.score([prompt], [sample.ids], signal=Signal(1), vocab_size=engine.vocab_size)
    return found.token_logprob


def _prove(engine: Engine, start: Start, probe: Probe | None) -> None:
    words = f"engine {engine.name!r} cannot sample from {start.source.words}"
    near, far = _prompts(engine, start)
    gaps = [partial(drawn_gap, engine, near, NEW_TOKENS)] if near else []
    gaps += [partial(far_gap, engine, prompt, NEW_TOKENS) for prompt in far]
    for measure in gaps:
        with explained(words, advice=ADVICE):
            gap = _fitting(engine, measure)
        _check(gap, start.dtype, f"{words}: its draws are {gap.words}, away from its own scores")
    if probe is not None and engine.name != "hf":
        gap = gap_of(probe_scores(engine, probe), probe.logprobs_T)
        _check(gap, start.dtype, f"{words}: its scores are {gap.words}, away from transformers'")


def _fitting(engine: Engine, measure: Callable[[], Gap]) -> Gap:
    """Return a gap, measured with fewer tokens at once where memory runs out."""
    while True:
        try:
            return measure()
        except CapacityError:
            if not engine.shrink():
                raise


def _check(gap: Gap, dtype: str, words: str) -> None:
    if passing := gap.beyond(noise_limit(dtype), dtype):
        raise ConfigError(f"{words}, where {passing}. Nothing was sampled. {ADVICE}")


def _prompts(engine: Engine, start: Start) -> tuple[list[Ids], list[Ids]]:
    """Return prompts of a few lengths that are drawn together, and longer ones.

    Some cross a border when drawn; one becomes the longest row that may be asked for.
    """
    reach, random = reach_of(start), np.random.default_rng(0)
    held = engine.context_length - int(engine.name != "hf")  # vLLM scores what it may go on
    room = min(start.max_tokens or held, held) - NEW_TOKENS
    near, far = [length for length in SHORT if length <= room], list[int]()
    for border in named_borders(whole_settings(start.source).get_text_config()):
        if max(SHORT) < border <= room and sum(near) + border <= NEAR_DRAWN:
            near.append(border - 1)
        elif max(SHORT) < border <= reach.tried - PAST:
            far.append(border - 1)
    last = min(room, reach.tried - NEW_TOKENS)
    is_cheap = reach.tried in (reach.allowed, room + NEW_TOKENS) or reach.tried > SHORT_ROW
    if is_cheap and last > max([0, *near, *far]):
        far.append(last)

    def rows(lengths: list[int]) -> list[Ids]:
        return [random.integers(0, engine.vocab_size, n).astype(np.int32) for n in lengths]

    return rows(near), rows(far)
