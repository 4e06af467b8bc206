"""The engine that samples for a stage: which weights, where responses end, how long they are."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.admission.starts import sampling_start
from pipeline.checkpoints.probe import find_probe
from pipeline.engines.engine import Engine
from pipeline.engines.hf.exported import take_exported
from pipeline.engines.kept import done, lent, once
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.ledger import RunLedger
from pipeline.engines.opening import for_policy, open_engine
from pipeline.engines.proof import proof_key, proved_engine
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.slot import EngineSlot, Weights
from pipeline.models.own.effective import end_token_ids
from pipeline.models.source import ModelSource
from pipeline.models.stopstrings import reading_backend
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from schemas.config.engines import EngineSection
from schemas.records.training import CheckpointManifest


def lazy_engine(
    run: Run,
    section: EngineSection,
    weights: Weights,
    *,
    slot: EngineSlot | None,
    progress: Progress,
    last: bool = True,
) -> LazyEngine:
    """Return an engine that samples for a run, not opened yet.

    Args:
        run: the run.
        section: which engine and its settings.
        weights: the model, and the version that names it on servers that are up elsewhere.
        slot: where an engine of the student is kept between stages; None for any other model.
        progress: told of a start that takes long, of a kept engine, and when memory ran out.
        last: whether no later stage samples from these weights, where models stay loaded.
    """
    slot = slot if section.vllm.keep_between_stages else None
    note, kept = progress.note, slot is not None
    start = sampling_start(run, section, weights.source, dtype=weights.dtype, kept=kept)
    start = replace(
        start,
        section=for_policy(start.section, weights.version),
        probed=weights.probe is not None,
        ledger=RunLedger(run),
    )
    opener = partial(_opened, start, note, weights)
    if start.section.engine == "hf":
        made_of = (weights.version, start.section.device, start.fixed)
        return LazyEngine(opener, note, partial(lent, place="sampler", key=made_of, last=last))
    if slot is None:
        return LazyEngine(opener, note)
    return LazyEngine(opener, note, partial(slot.lend, start=start, weights=weights, note=note))


def _opened(start: Start, note: Note, weights: Weights) -> Engine:
    """Return an engine that has proved itself; `hf` does so once for the students of one shape."""
    if start.section.engine != "hf" or start.source.base is not None:
        return proved_engine(start, note, probe=weights.probe)
    start = replace(start, model=take_exported(version=weights.version, dtype=start.dtype))
    if not once(proof_key(start)):
        return open_engine(start, note)
    engine = proved_engine(start, note, probe=weights.probe)
    done(proof_key(start))
    return engine


def student_weights(run: Run, policy: CheckpointManifest, source: ModelSource) -> Weights:
    """Return a checkpoint of the student as the weights that a stage samples from."""
    probe = find_probe(Path(source.location), policy)
    return Weights(source, policy.policy_version, run.config.student.dtype, probe)


def stop_tokens(
    given: tuple[int, ...] | None, tokenizer: Any, source: ModelSource
) -> tuple[int, ...]:
    """Return the ids that end a response: the configured ones, or all that the model names."""
    if given is not None:
        return tuple(sorted(set(given)))
    return end_token_ids(source, tokenizer)


def stop_strings(run: Run, tokenizer: Any) -> tuple[str, ...]:
    """Return the texts that end a response.

    Raises:
        ConfigError: there are some, and the tokenizer cannot be read token by token.
    """
    strings = run.config.rollout.stop_strings
    if strings:
        reading_backend(tokenizer)
    return strings
