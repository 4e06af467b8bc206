"""Score shards: from an engine's numbers to the bytes of a codec, and back verified.

Promises: rows stand in the order of the rollout rows they score; each distinct sequence is read by
the teacher once; what is written and what is read has passed the same checks.
"""

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.codec import codec_named
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.parquet import read_rows, read_table, write_table
from pipeline.store.records import create_record, find_record
from pipeline.store.storage import Storage
from schemas.columns import flat_values
from schemas.errors import DataError, IdentityError
from schemas.fingerprint import sha256
from schemas.foreign import shown
from schemas.keys import renumbering_key, renumberings_folder
from schemas.records.scores import RenumberingRecord, ScorerIdentity
from schemas.records.shards import Shard
from schemas.scoresignal import Kind, Signal
from schemas.tables import check_ids, check_scores

SHA256 = re.compile("[0-9a-f]{64}")

LARGEST_VOCABULARY = (1 << 31) - 1
"""Most ids that int32 columns tell apart."""


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
    return rows_of_shard(storage, shard, storage.read_shard(shard), scorer=scorer)


def rows_of_shard(
    storage: Storage,
    shard: Shard,
    data: bytes,
    *,
    scorer: str,
    rows: NDArray[np.int64] | None = None,
) -> pa.Table:
    """Return rows of a score shard whose bytes were verified.

    Args:
        storage: the store.
        shard: the shard.
        data: its bytes, as `Storage.read_shard` returns them.
        scorer: whose scores they are.
        rows: which of its rows, in this order; None for all.

    Raises:
        DataError: they are misshapen, of an unknown codec, or there is no such row.
        IdentityError: they are the scores of another scorer.
    """
    where = storage.url(shard.key)
    if rows is None:
        stored, metadata = read_table(data, where=where, rows=shard.rows)
    else:
        stored, metadata = read_rows(data, rows, where=where)
    if metadata.get("scorer") != scorer:
        raise IdentityError(
            f"{where} holds scores of scorer {shown(metadata.get('scorer'))}, expected {scorer}: "
            "they are of another teacher, signal or engine version. `opd score --only-invalid` "
            "makes the right ones"
        )
    digest = metadata.get("renumbering")
    if digest is not None and not (isinstance(digest, str) and SHA256.fullmatch(digest)):
        raise DataError(f"{where} names the renumbering {shown(digest)}, expected a sha256")
    renumbering = None if digest is None else _renumbering(storage, scorer, digest)
    return _decoded(stored, metadata, renumbering, where)


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
    key = renumbering_key(scorer)
    record = find_record(storage, key, RenumberingRecord)
    if record is None:
        ids = flat_values(table, _frequent(Signal.of(identity.signal)))
        learnt = Renumbering.learn(ids, vocab_size=identity.vocab_size)
        storage.put(f"{renumberings_folder(scorer)}/{learnt.digest}", learnt.to_bytes())
        record = create_record(storage, key, RenumberingRecord(sha256=learnt.digest))
    return _renumbering(storage, scorer, record.sha256)


def _frequent(signal: Signal) -> str:
    """Return the column whose ids tell which ones are frequent: the top-k, where there is one."""
    return next(c.name for c in signal.columns if c.kind is Kind.IDS)


@lru_cache(maxsize=4)
def _renumbering(storage: Storage, scorer: str, digest: str) -> Renumbering:
    where = storage.url(key := f"{renumberings_folder(scorer)}/{digest}")
    data = storage.get(key)
    if data is None:
        raise DataError(f"{where} is missing: the scores that name it cannot be read without it")
    found = Renumbering.from_bytes(data, where=where)
    if found.digest != digest:
        raise DataError(f"{where} is corrupt: its sha256 is {found.digest}")
    return found


def verified_renumbering(storage: Storage, scorer: str, digest: str) -> bytes:
    """Return the bytes of a scorer's table of ids, after they were found to be one of that name.

    Raises:
        DataError: they are missing, no such table, or not named after their content.
    """
    data = _renumbering(storage, scorer, digest).to_bytes()
    if sha256(data) != digest:
        where = storage.url(f"{renumberings_folder(scorer)}/{digest}")
        raise DataError(f"{where} is longer than the ids in it need: opd did not write it")
    return data


def _decoded(
    stored: pa.Table, metadata: dict[str, Any], renumbering: Renumbering | None, where: str
) -> pa.Table:
    codec, identity = codec_named(metadata.get("codec"), where=where), _identity(metadata, where)
    signal = Signal.of(identity.signal)
    if codec.renumbers and renumbering is not None:
        renumbering.check_size(identity.vocab_size, where=where)
    table = codec.decode(
        stored,
        signal=signal,
        vocab_size=identity.vocab_size,
        renumbering=renumbering,
        where=where,
    ).combine_chunks()
    _check(table, signal, identity.vocab_size, where)
    return table


def _identity(metadata: dict[str, Any], where: str) -> ScorerIdentity:
    """Return who the metadata of a shard says that its scores are of."""
    words = json.dumps(metadata.get("identity")).encode()
    identity = ScorerIdentity.from_bytes(words, where=f"the metadata of {where}")
    if identity.key != metadata.get("scorer"):
        raise DataError(
            f"{where} says that it is of scorer {shown(metadata.get('scorer'))}, but "
            f"describes {identity.key}: it is damaged. `opd score --only-invalid` makes it anew"
        )
    if not 0 < identity.vocab_size <= LARGEST_VOCABULARY:
        raise DataError(f"{where} is of a vocabulary of {shown(identity.vocab_size)} ids")
    return identity


def _check(table: pa.Table, signal: Signal, vocab_size: int, where: str) -> None:
    check_scores(table, signal=signal, where=where)
    check_ids(table, vocab_size, where=where)
