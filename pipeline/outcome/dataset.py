"""A run's sequences with their teachers' scores as a dataset: plain Parquet files and a card.

Promises: a file holds one unit of one teacher, and one is held at a time; scores stand beside the
sequences that they are of. Nothing is computed anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.outcome.columns import KEPT, MEANINGS
from pipeline.outcome.facts import Facts
from pipeline.outcome.markdown import as_json, escaped, fenced, header, table
from pipeline.report.stored.records import RoundRecords
from pipeline.runs.progress import Progress
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.records import read_record
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError
from schemas.keys import scorer_key
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.shards import Shard
from schemas.scoresignal import Signal
from schemas.tables import DIGEST

DATA = "data"
"""Folder of the files, by teacher."""

READ = """import polars as pl

rows = pl.read_parquet("data/{teacher}/*.parquet")
print(rows.select("prompt_id", "round", "text").head())"""


@dataclass(frozen=True)
class Dataset:
    """What was written."""

    files: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class Part:
    """A unit of a round and a teacher's scores of it."""

    round: int
    teacher: str
    unit: str
    scorer: str
    rollout: Shard
    scores: Shard


def write_dataset(facts: Facts, folder: Path, progress: Progress) -> Dataset:
    """Write all that is sampled and scored of a run into an empty folder.

    Raises:
        ConfigError: nothing is scored yet.
        DataError: a shard is missing or damaged, or is of other sequences.
    """
    parts = list(_parts(facts))
    if not parts:
        raise ConfigError(
            f"run {facts.run.name} has no round that is sampled and scored: a dataset of it would "
            "be empty. Run `opd score` first, or leave --dataset out"
        )
    rows, tokens = 0, 0
    columns: dict[str, pa.DataType] = {}
    progress.start("dataset", len(parts), 0)
    try:
        for part in parts:
            made = _joined(facts.run.storage, part)
            path = folder / DATA / part.teacher / f"round-{part.round:04d}-{part.unit}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(made, path, compression="zstd")
            columns |= {field.name: field.type for field in made.schema}
            rows, tokens = rows + made.num_rows, tokens + part.scores.tokens
            progress.advance(1, tokens=part.scores.tokens)
    finally:
        progress.stop()
    made_of = Dataset(len(parts), rows, tokens)
    text = _card(facts, parts, made_of, columns)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return made_of


def _parts(facts: Facts) -> Iterator[Part]:
    for one in facts.records.rounds:
        for name, scores in one.scores.items():
            yield from _units(one, name, scores)


def _units(one: RoundRecords, teacher: str, scores: ScoreManifest) -> Iterator[Part]:
    shards = {} if one.rollout is None else {u.unit: u.shard for u in one.rollout.units}
    for scored in scores.units:
        sampled = shards.get(scored.unit)
        if sampled is None:
            raise DataError(
                f"teacher {teacher} has scored unit {scored.unit} of round {one.round}, which its "
                "rollout does not have: restore the manifest of the rollout"
            )
        if scored.shard.rows:
            yield Part(one.round, teacher, scored.unit, scores.scorer, sampled, scored.shard)


def _joined(storage: Storage, part: Part) -> pa.Table:
    """Return the sequences of a unit that a teacher scored, with their scores."""
    sampled = read_rollout(storage, part.rollout)
    mine = sampled.filter(pc.equal(sampled["teacher"], part.teacher))
    scores = read_scores(storage, part.scores, scorer=part.scorer)
    if mine[DIGEST.name].to_pylist() != scores[DIGEST.name].to_pylist():
        raise DataError(
            f"{storage.url(part.scores.key)} holds the scores of other sequences than unit "
            f"{part.unit} of round {part.round} has: restore both"
        )
    identity = read_record(storage, scorer_key(part.scorer), ScorerIdentity)
    table = mine.select(list(KEPT)).replace_schema_metadata(None)
    for column in Signal.of(identity.signal).columns:
        table = table.append_column(scores.schema.field(column.name), scores[column.name])
    return table


def _card(facts: Facts, parts: list[Part], made: Dataset, columns: dict[str, pa.DataType]) -> str:
    teachers = list(dict.fromkeys(part.teacher for part in parts))
    rounds = sorted({part.round for part in parts})
    pieces = [
        header(_header(teachers)),
        f"# {escaped(facts.run.name)}: samples and their teachers' scores",
        f"{made.rows:,} sequences of {made.tokens:,} response tokens that the student "
        f"{escaped(facts.run.config.student.model)} sampled in rounds {rounds[0]} to {rounds[-1]} "
        "of a run of on-policy distillation, each with what its teacher says of every token. Made "
        "by opd.",
        "Prompts, responses and scores may be under the licences of the prompts' source, of the "
        "student and of the teachers; no record says what these are.",
        "## Read",
        fenced(READ.format(teacher=teachers[0]), "python"),
        "## Columns",
        "One row is one sequence. Lists begin at the first response token; those of several values "
        "for each token are flat. Log-probabilities are in nats, of the teacher at temperature 1. "
        "What is absent is null.",
        table(
            ["column", "type", "meaning"], [[n, str(k), MEANINGS[n]] for n, k in columns.items()]
        ),
        "## Teachers",
        *_teachers(facts, parts),
        "## Prompts",
        _prompts(facts),
        "## Run",
        as_json(facts.identity),
    ]
    return "\n\n".join(pieces) + "\n"


def _header(teachers: list[str]) -> dict[str, Any]:
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": "train", "path": f"{DATA}/{name}/*.parquet"}],
            "default": name == teachers[0],
        }
        for name in teachers
    ]
    return {"configs": configs, "tags": ["distillation", "on-policy-distillation", "opd"]}


def _teachers(facts: Facts, parts: list[Part]) -> Iterator[str]:
    found = dict.fromkeys((part.teacher, part.scorer) for part in parts)
    for name, scorer in found:
        mine = [p for p in parts if (p.teacher, p.scorer) == (name, scorer)]
        rows = sum(part.scores.rows for part in mine)
        model = facts.run.config.teachers[name].model
        yield f"{escaped(name)}, {escaped(model)}: {rows:,} sequences, by the scorer `{scorer}`:"
        identity = read_record(facts.run.storage, scorer_key(scorer), ScorerIdentity)
        yield as_json(identity.model_dump(mode="json"))


def _prompts(facts: Facts) -> str:
    prompts = facts.records.prompts
    if prompts is None:
        return "Which prompts they answer is not stored."
    return (
        f"{prompts.rows:,} prompts of {escaped(prompts.source)}, sha256 `{prompts.source_sha256}`."
    )
