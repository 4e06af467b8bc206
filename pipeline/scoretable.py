"""Score shards: from an engine's numbers to the bytes of a codec, and back verified.

Promises: rows stand in the order of the rollout rows they score; each distinct sequence is read by
the teacher once; what is written and what is read has passed the same checks.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.candidates import candidates_of
from pipeline.codec import check_ids, codec_named
from pipeline.commit import create_record, find_record
from pipeline.inventory import scorer_folder
from pipeline.lazyengine import LazyEngine
from pipeline.parquet import read_table, write_table
from pipeline.ragged import token_index
from pipeline.renumbering import Renumbering
from pipeline.scorearrays import table_of
from pipeline.storage import Storage
from schemas.errors import DataError, IdentityError
from schemas.manifest import RenumberingRecord, ScorerIdentity, Shard
from schemas.scoresignal import Signal
from schemas.tables import SCORES, check_scores, flat_values, list_lengths, list_rows


def score_table(
    rows: pa.Table, engine: LazyEngine, identity: ScorerIdentity
) -> tuple[pa.Table, int]:
    """Return the score table of rollout rows, and the tokens that the teacher read.

    Raises:
        DataError: the teacher returned a NaN or another impossible number, or the rollout lacks
            the candidates that the signal names.
    """
    if not rows.num_rows:
        return SCORES.empty_table(), 0
    signal = Signal.of(identity.signal)
    digests = rows.column("sequence_digest")
    places = pc.index_in(digests, value_set=pc.unique(digests)).to_numpy()
    _, first = np.unique(places, return_index=True)
    lengths = list_lengths(rows, "response_ids")
    distinct = rows.take(pa.array(first))
    prompts, responses = list_rows(distinct, "prompt_ids"), list_rows(distinct, "response_ids")
    _check_ids(rows, engine.get().vocab_size)
    candidates = candidates_of(distinct, signal)
    scores = engine.call(
        lambda e: e.score(
            prompts,
            responses,
            signal=signal,
            vocab_size=identity.vocab_size,
            candidates=candidates,
        )
    )
    scores.check(vocab_size=identity.vocab_size, where="scoring")
    if len(first) < len(places):
        scores = scores.take(token_index(lengths[first], places))
    tokens = sum(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    return table_of(digests.to_pylist(), scores, lengths, signal), tokens


def write_scores(
    table: pa.Table, identity: ScorerIdentity, *, renumbering: Renumbering | None = None
) -> bytes:
    """Return a score table as the bytes of a shard that says whose scores they are.

    Args:
        table: the scores, checked here.
        identity: whose scores they are; it names the codec.
        renumbering: the scorer's table of `pinned_renumbering`, where its codec has one.
    """
    where = "scores to be written"
    signal, codec = Signal.of(identity.signal), codec_named(identity.codec, where=where)
    _check(table, signal, identity.vocab_size, where)
    stored = codec.encode(
        table, signal=signal, vocab_size=identity.vocab_size, renumbering=renumbering
    )
    metadata = {
        "scorer": identity.key,
        "identity": identity.model_dump(mode="json"),
        "codec": identity.codec,
        "renumbering": None if renumbering is None else renumbering.digest,
    }
    return write_table(stored, metadata, token_column="token_logprob")


def read_scores(storage: Storage, shard: Shard, *, scorer: str) -> pa.Table:
    """Return the rows of a score shard, verified.

    Raises:
        DataError: the object is missing, corrupt, misshapen or of an unknown codec.
        IdentityError: it holds the scores of another scorer.
    """
    where = storage.url(shard.key)
    stored, metadata = read_table(storage.read_shard(shard), where=where)
    if metadata.get("scorer") != scorer:
        raise IdentityError(
            f"{where} holds scores of scorer {metadata.get('scorer')}, expected {scorer}: they are "
            "of another teacher, signal or engine version. `opd score --only-invalid` makes the "
            "right ones"
        )
    digest = metadata.get("renumbering")
    renumbering = None if digest is None else _renumbering(storage, scorer, digest)
    table = _decoded(stored, metadata, renumbering, where)
    if table.num_rows != shard.rows:
        raise DataError(f"{where} has {table.num_rows} rows, its commit says {shard.rows}")
    return table


def decode_scores(data: bytes, *, renumbering: Renumbering | None, where: str) -> pa.Table:
    """Return the rows of a shard's bytes, checked, whosever they are.

    Raises:
        DataError: they are misshapen or of an unknown codec.
    """
    return _decoded(*read_table(data, where=where), renumbering, where)


def pinned_renumbering(
    storage: Storage, identity: ScorerIdentity, table: pa.Table
) -> Renumbering | None:
    """Return the renumbering that all shards of a scorer share; its first scores decide it.

    Args:
        storage: the store.
        identity: whose scores they are.
        table: scores to learn from, where there is no renumbering yet.
    """
    if not codec_named(identity.codec, where="the scorer").renumbers:
        return None
    scorer = identity.key
    key = f"{scorer_folder(scorer)}/renumbering.json"
    record = find_record(storage, key, RenumberingRecord)
    if record is None:
        learnt = Renumbering.learn(flat_values(table, "topk_ids"), vocab_size=identity.vocab_size)
        storage.put(_renumbering_key(scorer, learnt.digest), learnt.to_bytes())
        record = create_record(storage, key, RenumberingRecord(sha256=learnt.digest))
    return _renumbering(storage, scorer, record.sha256)


@lru_cache(maxsize=4)
def _renumbering(storage: Storage, scorer: str, digest: str) -> Renumbering:
    where = storage.url(key := _renumbering_key(scorer, digest))
    data = storage.get(key)
    if data is None:
        raise DataError(f"{where} is missing: the scores that name it cannot be read without it")
    found = Renumbering.from_bytes(data, where=where)
    if found.digest != digest:
        raise DataError(f"{where} is corrupt: its sha256 is {found.digest}")
    return found


def _renumbering_key(scorer: str, digest: str) -> str:
    return f"{scorer_folder(scorer)}/renumbering/{digest}"


def _decoded(
    stored: pa.Table, metadata: dict[str, Any], renumbering: Renumbering | None, where: str
) -> pa.Table:
    codec = codec_named(metadata.get("codec"), where=where)
    identity = ScorerIdentity.model_validate(metadata["identity"])
    signal = Signal.of(identity.signal)
    table = codec.decode(
        stored,
        signal=signal,
        vocab_size=identity.vocab_size,
        renumbering=renumbering,
        where=where,
    ).combine_chunks()
    _check(table, signal, identity.vocab_size, where)
    return table


def _check(table: pa.Table, signal: Signal, vocab_size: int, where: str) -> None:
    check_scores(table, signal=signal, where=where)
    check_ids(table, vocab_size, where=where)


def _check_ids(rows: pa.Table, vocab_size: int) -> None:
    for name in ("prompt_ids", "response_ids"):
        highest = int(flat_values(rows, name).max(initial=0))
        if highest >= vocab_size:
            raise DataError(
                f"a rollout holds id {highest} in {name!r}, but the teacher's vocabulary ends at "
                f"{vocab_size - 1}: it cannot read the sequence"
            )
