"""What is fuzzed: each target makes bytes at random, and says what became of any bytes.

Promises: a check returns what the input ended as, `accepted` or the name of a refusal that its
format allows; anything else that is raised is a fault of opd. The tests run the same checks.
"""

import gzip
import io
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.kit.fuzzscores import SCORER, any_table, score_shard
from benchmarks.kit.mutation import TEXTS, any_json, any_object, mutated
from pipeline.prompts.files import PromptFile
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.records import parse_record
from pipeline.prompts.values import BadRecord
from pipeline.shards.codec import CODECS
from pipeline.shards.parquet import read_rows, read_table
from pipeline.shards.scores import decode_scores, read_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.records import index, runs, scores, shards, training
from schemas.records.record import Record
from schemas.tables import check_ids, check_scores

ACCEPTED = "accepted"


@dataclass(frozen=True)
class Target:
    """One format: random inputs of it, and what becomes of an input."""

    make: Callable[[Random], bytes]
    check: Callable[[bytes], str]


def refusals(*kinds: type[Exception]) -> Callable[[Callable[[bytes], Any]], Callable[[bytes], str]]:
    """Return a decorator of checks: these errors are how an input may be refused."""

    def decorate(check: Callable[[bytes], Any]) -> Callable[[bytes], str]:
        def checked(data: bytes) -> str:
            try:
                check(data)
            except kinds as error:
                return type(error).__name__
            return ACCEPTED

        return checked

    return decorate


def _prompts(name: str) -> Callable[[bytes], str]:
    @refusals(ConfigError, BadRecord)
    def check(data: bytes) -> None:
        """Every record is a prompt or one `BadRecord`, or the file is refused as a whole."""
        problem: BadRecord | None = None
        for chunk in record_chunks(PromptFile(name, "", data)):
            for _, value in chunk:
                try:
                    if isinstance(value, BadRecord):
                        raise value
                    record = parse_record(value, teachers=["main"])
                    json.loads(record.metadata or "{}")
                except BadRecord as found:
                    found.args[0].encode()
                    problem = found
        if problem is not None:
            raise problem

    return check


def _prompt_object(random: Random) -> dict[str, Any]:
    prompts: list[dict[str, Any]] = [
        {"prompt": "1+1="},
        {"prompt_ids": [1, 2]},
        {"messages": [{"role": "user", "content": "a", "name": None}]},
    ]
    further = {"reference": 2, "weight": 0.5, "teacher": "main", "prompt_id": "p", "x": [None, {}]}
    kept = random.sample(sorted(further), random.randrange(4))
    found = random.choice(prompts) | {name: further[name] for name in kept}
    if random.random() < 0.3:
        found[random.choice([*found, *further, *TEXTS])] = any_json(random)
    return found


def _lines(random: Random) -> bytes:
    texts = [json.dumps(_prompt_object(random)) for _ in range(random.randrange(1, 4))]
    data = "\n".join(texts).encode()
    return mutated(data, random) if random.random() < 0.7 else data


def _compressed(random: Random) -> bytes:
    data = gzip.compress(_lines(random), mtime=0)
    return mutated(data, random) if random.random() < 0.5 else data


@cache
def _parquet_files() -> tuple[bytes, ...]:
    """Return valid Parquet files of prompts in several layouts."""
    columns = {
        "prompt": ["1+1=", None, None],
        "prompt_ids": [None, [1, 2, 3], None],
        "messages": [None, None, [{"role": "user", "content": "é" * 40}]],
        "at": pa.array([0, None, 2**62], pa.timestamp("ns", "UTC")),
        "map": pa.array([[("a", 1.5)], None, []], pa.map_(pa.string(), pa.float64())),
        "tag": pa.array(["x", "y", "x"]).dictionary_encode(),
    }
    layouts: tuple[dict[str, Any], ...] = (
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "snappy", "row_group_size": 1, "write_page_index": True},
    )
    found = []
    for layout in layouts:
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, **layout)
        found.append(sink.getvalue())
    return tuple(found)


def _parquet(random: Random) -> bytes:
    return mutated(random.choice(_parquet_files()), random)


KINDS = tuple(
    kind
    for module in (index, runs, scores, shards, training)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind.__module__ == module.__name__
)
"""Every kind of record."""


def _record(random: Random) -> bytes:
    place = random.randrange(len(KINDS))
    data = json.dumps(any_object(KINDS[place], random)).encode()
    return bytes([place]) + (mutated(data, random) if random.random() < 0.6 else data)


@refusals(DataError)
def _check_record(data: bytes) -> None:
    """A record that is read is written and read again as the same, by the same bytes."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    record = kind.from_bytes(data[1:], where="x")
    written = record.to_bytes()
    again = kind.from_bytes(written, where="x")
    assert again == record and again.to_bytes() == written


def _seeded(random: Random) -> bytes:
    return random.randbytes(8)


def _check_codecs(data: bytes) -> str:
    """What a codec gives back is stored by the same bytes."""
    random = Random(data)
    table, signal, vocab, by = any_table(random)
    for codec in CODECS.values():
        given: dict[str, Any] = {"signal": signal, "vocab_size": vocab, "renumbering": by}
        stored = codec.encode(table, **given)
        back = codec.decode(stored, **given, where="x")
        check_scores(back, signal=signal, where="x")
        check_ids(back, vocab, where="x")
        assert codec.encode(back, **given).equals(stored)
    return ACCEPTED


@refusals(DataError)
def _check_columns(data: bytes) -> None:
    """Stored columns with changed bytes are refused, or are scores that pass all checks."""
    random = Random(data)
    table, signal, vocab, by = any_table(random)
    codec = random.choice(sorted(CODECS))
    given: dict[str, Any] = {"signal": signal, "vocab_size": vocab, "renumbering": by}
    stored = CODECS[codec].encode(table, **given)
    place = random.randrange(stored.num_columns)
    field = stored.schema.field(place)
    stored = stored.set_column(place, field, pa.array(_changed(stored[place], random), field.type))
    back = CODECS[codec].decode(stored, **given, where="x")
    check_scores(back, signal=signal, where="x")
    check_ids(back, vocab, where="x")


def _changed(column: pa.ChunkedArray, random: Random) -> list[Any]:
    """Return a column's values, one of them changed."""
    values: list[Any] = column.to_pylist()
    if not values:
        return values
    place = random.randrange(len(values))
    value = values[place]
    if isinstance(value, bytes):
        values[place] = mutated(value, random)
    elif isinstance(value, list) and value:
        value[random.randrange(len(value))] = random.choice((0, 1, 60000, value[0]))
    elif isinstance(value, list):
        values[place] = [0]
    return values


def _shard(random: Random) -> bytes:
    return mutated(score_shard(random), random)


@refusals(DataError, IdentityError)
def _check_shard(data: bytes) -> None:
    """The bytes of a shard are refused, whole and by rows, or are scores that pass all checks."""
    decode_scores(data, renumbering=None, where="x")
    read_rows(data, np.array([0]), where="x")


@refusals(DataError, IdentityError)
def _check_stored_shard(data: bytes) -> None:
    """A shard whose bytes changed in the store is never read as if they had not."""
    random = Random(data)
    before = score_shard(random)
    storage = Storage(f"memory://{uuid.UUID(bytes=random.randbytes(16))}")
    shard = content_shard("data", before, rows=read_table(before, where="x")[0].num_rows, tokens=0)
    after = mutated(before, random)
    storage.put(shard.key, after)
    try:
        read_scores(storage, shard, scorer=SCORER.key)
        assert after == before
    finally:
        storage.delete(shard.key)


TOML = b"""
run = { name = "fuzz", root = "data", seed = 1, rounds = 2 }
student = { model = "student", dtype = "bfloat16" }
prompts = { train = "p.jsonl", max_tokens = 64 }
score = { k = 8 }
loss = { kind = "forward_kl" }
[teachers.main]
model = "teacher"
[rollout]
prompts_per_round = 8
samples_per_prompt = 2
max_new_tokens = 16
temperature = 1.0
top_p = 1.0
top_k = 0
stop_token_ids = [3]
[train]
learning_rate = 1e-5
sequences_per_step = 8
"""


def _toml(random: Random) -> bytes:
    return mutated(TOML, random)


@refusals(ConfigError)
def _check_toml(data: bytes) -> None:
    """A text is a configuration or one error in words."""
    parse_config(data.decode(errors="replace"), where="x")


TARGETS: dict[str, Target] = {
    "prompts.jsonl": Target(_lines, _prompts("p.jsonl")),
    "prompts.jsonl.gz": Target(_compressed, _prompts("p.jsonl.gz")),
    "prompts.parquet": Target(_parquet, _prompts("p.parquet")),
    "records": Target(_record, _check_record),
    "codecs": Target(_seeded, _check_codecs),
    "stored columns": Target(_seeded, _check_columns),
    "shard bytes": Target(_shard, _check_shard),
    "stored shards": Target(_seeded, _check_stored_shard),
    "run.toml": Target(_toml, _check_toml),
}
"""Every target by its name."""
