"""What transformers says of a few rows in float32: engines of vLLM are held against it.

Promises: an engine that computes an architecture otherwise than transformers is closed before
anything is sampled or scored; what was held is not held again, and a student that is compared with
its checkpoint's probe shares that with the others of its run; where a model cannot be held so, that
is said. Shapes: T tokens of all responses joined.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.engines.engine import Engine
from pipeline.engines.provenance import Seen, with_any_weights, with_weights
from pipeline.engines.reach import PAST, Reach, named_borders, reach_of
from pipeline.engines.start import Note, Start
from pipeline.models.loading import load_model
from pipeline.models.look.settings import quantization_of
from pipeline.models.own.attention import require_agreement
from pipeline.models.own.causality import require_causality
from pipeline.models.own.experts import require_same_experts
from pipeline.models.source import ModelSource, local_folder, whole_settings
from pipeline.scores.drift import Gap, gap_of
from pipeline.scores.tolerances import noise_limit
from schemas.columns import Floats, Ids
from schemas.errors import CapacityError, ConfigError
from schemas.fingerprint import fingerprint
from schemas.scoresignal import Signal

ROWS = (6, 17, 64)
"""Tokens of the rows, prompt and response."""

LAST = 16
"""Most tokens of a longer row's response, so that its logits are few."""

GROWTH = 2.5
"""Bytes that the reference may take for each byte of the weights' files, 16 bits made to 32."""

SHARE = 0.5
"""Share of the free memory that it may take."""

MARGIN = 0.5
"""Share of the limit in float32 that a few tokens may show: among many more one is further off."""

_HELD: set[str] = set()
"""Digests of what was seen of engines that were held in this process."""


@dataclass(frozen=True)
class _Reference:
    """Rows, and what transformers says of them."""

    prompts: list[Ids]
    responses: list[Ids]
    logprobs_T: Floats


def held_engine(start: Start, begin: Callable[[], Engine], *, version: str, note: Note) -> Engine:
    """Return an engine whose scores are those of transformers but for rounding.

    Args:
        start: what the engine starts with, and where it is remembered what was held.
        begin: starts it.
        version: the versions that its numbers depend on.
        note: told why a model cannot be held against transformers.

    Raises:
        ConfigError: its scores are others, transformers cannot load the model, or the model's
            weights are not finite.
    """
    known = _is_known(start, version)
    # first, for vLLM changes transformers while it runs
    reference = None if known else _reference_of(start, note)
    engine = begin()
    try:
        if reference is not None:
            _remember(start, version, _check(engine, reference, start))
    except BaseException:
        engine.close()
        raise
    return engine


def _is_known(start: Start, version: str) -> bool:
    """Return whether the very engine was held, in this process or by whoever left a record."""
    if _is_quantised(start.source):
        return False
    seen = next(_sights(start, version))
    if fingerprint(seen) in _HELD:
        return True
    return start.ledger is not None and start.ledger.has(seen)


def _remember(start: Start, version: str, gap: Gap) -> None:
    for seen in _sights(start, version):
        _HELD.add(fingerprint(seen))
        if start.ledger is not None:
            start.ledger.keep(seen, asdict(gap))


def _sights(start: Start, version: str) -> Iterator[Seen]:
    """Yield what stands for an engine, that by which it is known first.

    A student's weights are new in each round. With a probe they are compared by themselves, and
    what has to be known is that the engine computes a model of such settings as transformers does.
    """
    if not start.probed:
        yield with_weights(start, version)
    if start.use == "sample":
        yield with_any_weights(start, version)


def _reference_of(start: Start, note: Note) -> _Reference | None:
    """Return what an engine is to be held against; None where it cannot be."""
    if reason := _why_not(start.source):
        note(f"{start.source.words} is not held against a forward of transformers: {reason}")
        return None
    reach = reach_of(start)
    if reach.borders:
        note(f"{start.source.words}: {reach.words()}")
    settings = whole_settings(start.source).get_text_config()
    prompts, responses = _rows(settings, reach)
    try:
        logprobs_T = _logprobs(start.source, prompts, responses)
    except CapacityError as error:
        note(f"{start.source.words} is not held against a forward of transformers: {error}")
        return None
    return _Reference(prompts, responses, logprobs_T)


def _check(engine: Engine, reference: _Reference, start: Start) -> Gap:
    """Return how far an engine's scores are from those of transformers: no more than rounding."""
    found = engine.score(
        reference.prompts,
        reference.responses,
        signal=Signal(1),
        vocab_size=engine.vocab_size,
    )
    gap = gap_of(found.token_logprob, reference.logprobs_T)
    margin = MARGIN if start.dtype == "float32" else 1.0
    if passing := gap.beyond(margin * noise_limit(start.dtype), start.dtype):
        raise ConfigError(
            f"engine {engine.name!r} cannot be used with {start.source.words}: on "
            f"{len(reference.logprobs_T)} tokens its log-probabilities are {gap.words}, away from "
            f"a float32 forward of transformers, where {passing}. {engine.version} "
            "computes this model otherwise: set the stage's engine to 'hf'. Nothing was stored"
        )
    return gap


def _why_not(source: ModelSource) -> str | None:
    """Return why a model is not held against transformers, or None where it is."""
    import psutil

    if _is_quantised(source):
        return "its weights are quantised, and engines read such weights each in its own way"
    folder = local_folder(source.whole)
    files = [] if folder is None else list(folder.glob("*.safetensors"))
    needed = GROWTH * sum(file.stat().st_size for file in files)
    free = SHARE * psutil.virtual_memory().available
    if needed > free:
        return f"that takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} can be had"
    return None


def _is_quantised(source: ModelSource) -> bool:
    return quantization_of(whole_settings(source).to_dict()) is not None


def _logprobs(source: ModelSource, prompts: list[Ids], responses: list[Ids]) -> Floats:
    import torch

    model = load_model(source, dtype="float32", device="cpu")
    require_causality(model, source)
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    require_agreement(model, source, tokens=longest)
    require_same_experts(model, source)
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


def _rows(settings: Any, reach: Reach) -> tuple[list[Ids], list[Ids]]:
    """Return prompts and responses of random ids, one row beyond each border within reach."""
    beyond = [border + PAST for border in named_borders(settings)]
    lengths = sorted({n for n in (*ROWS, *beyond, reach.compared) if n <= reach.compared})
    random = np.random.default_rng(0)
    rows = [random.integers(0, settings.vocab_size, n).astype(np.int32) for n in lengths]
    cuts = [n // 2 if n in ROWS else max(n // 2, n - LAST) for n in lengths]
    return (
        [row[:cut] for row, cut in zip(rows, cuts, strict=True)],
        [row[cut:] for row, cut in zip(rows, cuts, strict=True)],
    )
