"""How far a round's engine is from a float32 transformers forward, on the round's own rows.

The figures are recorded beside the round's scores, once. Nothing else is written.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engines.engine import Engine
from pipeline.engines.opening import engine_version, open_engine
from pipeline.engines.start import Note, Start
from pipeline.models.source import find_model
from pipeline.runs.run import Run
from pipeline.scores.drift import Drift, differences, drift_of
from pipeline.scores.scores import Scores
from pipeline.shards.rollouts import read_rollout
from pipeline.store.records import create_record, find_record
from pipeline.teachers.teacher import find_scorer
from schemas.columns import Ids, list_rows
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.keys import drift_key, score_stage
from schemas.records.scores import DriftRecord
from schemas.scoresignal import Signal

REFERENCE_DTYPE = "float32"


@dataclass(frozen=True)
class _Rows:
    prompts: list[Ids]
    responses: list[Ids]


def find_drift(run: Run, round_index: int, teacher: str) -> DriftRecord | None:
    """Return a round's drift record, or None where none was asked for."""
    return find_record(run.storage, _key(run, round_index, teacher), DriftRecord)


def _key(run: Run, round_index: int, teacher: str) -> str:
    return drift_key(run.stage_folder(round_index, score_stage(teacher)))


def measure_drift(
    run: Run, round_index: int, num_rows: int, *, note: Note
) -> Iterator[DriftRecord]:
    """Yield the drift of each teacher of a round, measured once and kept.

    Args:
        run: the run.
        round_index: a round that has been sampled.
        num_rows: rows of each teacher that are scored twice.
        note: told what is loaded.

    Raises:
        ConfigError: the round is not sampled.
    """
    for teacher, section in run.config.teachers.items():
        if section.scores is not None:
            continue
        stands = find_drift(run, round_index, teacher)
        if stands is None:
            rows = _rows(run, round_index, teacher, num_rows)
            if rows is None:
                continue
            measured = _measure(run, round_index, teacher, rows, note)
            stands = create_record(run.storage, _key(run, round_index, teacher), measured)
        yield stands


def _rows(run: Run, round_index: int, teacher: str, num_rows: int) -> _Rows | None:
    """Return rows of a teacher from as few shards as hold enough."""
    rollout = run.rollout(round_index)
    if rollout is None:
        raise ConfigError(
            f"round {round_index} has no finished rollout to measure on: run "
            f"`opd rollout --round {round_index}` first"
        )
    found = list[pa.Table]()
    for unit in rollout.units:
        rows = read_rollout(run.storage, unit.shard)
        found.append(rows.filter(pc.equal(rows.column("teacher"), teacher)))
        if sum(part.num_rows for part in found) >= num_rows:
            break
    table = pa.concat_tables(found).slice(0, num_rows)
    if not table.num_rows:
        return None
    return _Rows(list_rows(table, "prompt_ids"), list_rows(table, "response_ids"))


def _measure(run: Run, round_index: int, teacher: str, rows: _Rows, note: Note) -> DriftRecord:
    scorer = find_scorer(run, round_index, teacher)
    signal, size = Signal(max(run.config.score.k, 1)), scorer.identity.vocab_size
    source = find_model(run.place, run.config.teachers[teacher], f"teachers.{teacher}")
    longest = max(len(p) + len(r) for p, r in zip(rows.prompts, rows.responses, strict=True))

    def scores(section: EngineSection, dtype: str) -> Scores:
        note(f"loading teacher {teacher}: {section.engine}, {dtype}")
        start = Start(source, section, dtype=dtype, use="score", max_tokens=longest)
        engine: Engine = open_engine(start, note)
        try:
            return engine.score(rows.prompts, rows.responses, signal=signal, vocab_size=size)
        finally:
            engine.close()

    section = run.config.score
    mine = scores(section, scorer.identity.dtype)
    reference = EngineSection(
        engine="hf", device=section.device, logit_chunk_mb=section.logit_chunk_mb
    )
    drift: Drift = drift_of([differences(scores(reference, REFERENCE_DTYPE), mine)])
    trained = run.train(round_index)
    return DriftRecord(
        teacher=teacher,
        scorer=scorer.key,
        engine=f"{section.engine} {engine_version(section.engine)} {scorer.identity.dtype}",
        reference=f"hf {engine_version('hf')} {REFERENCE_DTYPE}",
        rows=len(rows.prompts),
        tokens=int(np.sum([len(r) for r in rows.responses])),
        drift=asdict(drift),
        rollout_kl=None if trained is None else trained.rollout_kl,
    )
