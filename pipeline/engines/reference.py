"""What transformers says of a few rows in float32: engines of vLLM are held against it.

Promises: an engine that computes an architecture otherwise than transformers is closed before
anything is sampled or scored; a process pays it once for each teacher and for all its students;
where a model cannot be held so, that is said. Shapes: T tokens of all responses joined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.engines.borders import borders_of
from pipeline.engines.engine import Engine
from pipeline.engines.start import Note, Start
from pipeline.models.loading import load_model
from pipeline.models.look.settings import quantization_of
from pipeline.models.source import ModelSource, local_folder, whole_settings
from pipeline.scores.drift import gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.columns import Floats, Ids
from schemas.errors import CapacityError, ConfigError
from schemas.fingerprint import fingerprint
from schemas.scoresignal import Signal

ROWS = (6, 17, 64)
"""Tokens of the rows, prompt and response."""

MOST_TOKENS = 256
"""Tokens of a row that goes beyond a border of the model."""

GROWTH = 2.5
"""Bytes that the reference may take for each byte of the weights' files, 16 bits made to 32."""

SHARE = 0.5
"""Share of the free memory that it may take."""

MARGIN = 0.5
"""Share of the limit in float32 that a few tokens may show: among many more one is further off."""

_HELD: set[str] = set()
"""Digests of models' settings, and of engines', that were held in this process."""


@dataclass(frozen=True)
class _Reference:
    """Rows, and what transformers says of them."""

    prompts: list[Ids]
    responses: list[Ids]
    logprobs_T: Floats


def held_engine(start: Start, begin: Callable[[], Engine], note: Note) -> Engine:
    """Return an engine whose scores are those of transformers but for rounding.

    Args:
        start: what the engine starts with.
        begin: starts it.
        note: told why a model cannot be held against transformers.

    Raises:
        ConfigError: its scores are others, transformers cannot load the model, or the model's
            weights are not finite.
    """
    reference = _reference_of(start, note)  # first, for vLLM changes transformers while it runs
    engine = begin()
    try:
        if reference is not None:
            _check(engine, reference, start)
    except BaseException:
        engine.close()
        raise
    return engine


def _reference_of(start: Start, note: Note) -> _Reference | None:
    """Return what an engine is to be held against; None where it was, or cannot be."""
    if _key(start) in _HELD:
        return None
    if reason := _why_not(start.source):
        note(f"{start.source.words} is not held against a forward of transformers: {reason}")
        return None
    settings = whole_settings(start.source).get_text_config()
    prompts, responses = _rows(settings, start.max_tokens)
    try:
        logprobs_T = _logprobs(start.source, prompts, responses)
    except CapacityError as error:
        note(f"{start.source.words} is not held against a forward of transformers: {error}")
        return None
    return _Reference(prompts, responses, logprobs_T)


def _check(engine: Engine, reference: _Reference, start: Start) -> None:
    """Make sure that an engine's scores are those of transformers but for rounding."""
    found = engine.score(
        reference.prompts,
        reference.responses,
        signal=Signal(1),
        vocab_size=engine.vocab_size,
    )
    gap = gap_of(found.token_logprob, reference.logprobs_T)
    exact = start.dtype == "float32"
    limit = MARGIN * noise_limit(start.dtype) if exact else noise_limit(start.dtype)
    if not (gap.max if exact else gap.mean) <= limit:  # NaN is refused
        raise ConfigError(
            f"engine {engine.name!r} cannot be used with {start.source.words}: on "
            f"{len(reference.logprobs_T)} tokens its log-probabilities are {gap.words}, away from "
            f"a float32 forward of transformers, where {limit:.1e} "
            f"{'at most' if exact else 'on average'} would pass for rounding in {start.dtype}. "
            f"{engine.version} computes this model otherwise: set the stage's engine to 'hf'. "
            "Nothing was stored"
        )
    _HELD.add(_key(start))


def _key(start: Start) -> str:
    settings = whole_settings(start.source).to_dict()
    for volatile in ("_name_or_path", "transformers_version"):
        settings.pop(volatile, None)
    # a student's weights are new in each round, and held against the probe of their checkpoint
    which = start.source.location if start.use == "score" else ""
    adapted = start.source.base is not None
    return fingerprint([repr(sorted(settings.items())), repr(start.fixed), which, adapted])


def _why_not(source: ModelSource) -> str | None:
    """Return why a model is not held against transformers, or None where it is."""
    import psutil

    settings = whole_settings(source).to_dict()
    if quantization_of(settings) is not None:
        return "its weights are quantised, and engines read such weights each in its own way"
    folder = local_folder(source.whole)
    files = [] if folder is None else list(folder.glob("*.safetensors"))
    needed = GROWTH * sum(file.stat().st_size for file in files)
    free = SHARE * psutil.virtual_memory().available
    if needed > free:
        return f"that takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} can be had"
    return None


def _logprobs(source: ModelSource, prompts: list[Ids], responses: list[Ids]) -> Floats:
    import torch

    model = load_model(source, dtype="float32", device="cpu")
    found = []
    with torch.inference_mode():
        for prompt, response in zip(prompts, responses, strict=True):
            ids_T = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            logprobs_TV = logits_TV.float().log_softmax(-1)
            found.append(logprobs_TV.gather(1, ids_T[len(prompt) :, None])[:, 0].numpy())
    return np.concatenate(found)


def _rows(settings: Any, longest: int | None) -> tuple[list[Ids], list[Ids]]:
    """Return prompts and responses of random ids, one row beyond each border of the model."""
    held = getattr(settings, "max_position_embeddings", None)
    room = min(each for each in (longest, held, MOST_TOKENS) if each is not None)
    lengths = [n for n in (*ROWS, *(n + 8 for n in borders_of(settings))) if n <= room] or [room]
    random = np.random.default_rng(0)
    rows = [random.integers(0, settings.vocab_size, n).astype(np.int32) for n in lengths]
    return [row[: len(row) // 2] for row in rows], [row[len(row) // 2 :] for row in rows]
