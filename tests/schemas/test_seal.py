"""Records carry their own digest: whatever byte of one changes, it is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoints.probe import Probe
from schemas.errors import DataError
from schemas.fingerprint import canonical_json, fingerprint
from schemas.records.record import Record, Versioned
from schemas.records.runs import EvalManifest
from schemas.records.seal import NEWEST, with_seal
from schemas.records.sweeps import SweepRecord
from tests.schemas.test_records import COMMIT, KINDS, example
from tests.support.forged import forged

SEALED: list[Record] = [
    *(example(kind, absent=False) for kind in KINDS if issubclass(kind, Versioned)),
    SweepRecord(sweep="a", dead_after_s=1.5, keys=("runs/a/", "rollouts/x")),
    Probe(prompt_ids=((1, 2),), response_ids=((3,),), logprobs=((-1.0e-7,),)),
]
"""A record of each kind that carries a digest."""

each = pytest.mark.parametrize("record", SEALED, ids=lambda record: type(record).__name__)


def as_an_older_opd_wrote_it(record: Record) -> bytes:
    words = json.loads(record.to_bytes())
    del words["digest"]
    words["schema_version"] -= 1
    return canonical_json(words).encode() + b"\n"


@given(st.data())
def test_a_record_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(SEALED))
    stored = bytearray(record.to_bytes())
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError, match="x is not a|x has schema version"):
        type(record).from_bytes(bytes(stored), where="x")


@each
def test_a_record_with_any_bit_of_any_byte_flipped_is_refused(record: Record) -> None:
    stored = record.to_bytes()
    for place in range(len(stored)):
        changed = bytearray(stored)
        changed[place] ^= 1 << place % 8
        with pytest.raises(DataError):
            type(record).from_bytes(bytes(changed), where="x")


@each
def test_a_record_of_before_there_were_digests_is_read(record: Record) -> None:
    older = as_an_older_opd_wrote_it(record)
    assert b'"digest"' not in older
    assert type(record).from_bytes(older, where="x") == record


@each
def test_the_digest_is_the_fingerprint_of_all_else(record: Record) -> None:
    words = json.loads(record.to_bytes())
    assert list(words)[-1] == "digest"
    assert words.pop("digest") == fingerprint(words)
    assert words["schema_version"] == NEWEST > record.model_dump()["schema_version"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy": 0.75}, "does not fit its own digest: found [0-9a-f]{32}, it says"),
        ({"policy_version": "q"}, "does not fit its own digest"),
        ({"digest": "0" * 32}, "does not fit its own digest: found [0-9a-f]{32}, it says 0{32}"),
        ({"digest": 3}, "schema version 2 and does not end with its own digest"),
        ({"schema_version": 7}, "does not fit its own digest"),
    ],
)
def test_what_differs_is_said_and_what_to_do(changes: dict[str, object], words: str) -> None:
    words_of = json.loads(example(EvalManifest, absent=False).to_bytes()) | changes
    data = json.dumps(words_of, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(DataError, match=f"a/b.json is not a EvalManifest: .*{words}.*Restore it"):
        EvalManifest.from_bytes(data, where="a/b.json")


def test_a_record_that_lost_its_digest_is_no_older_one() -> None:
    words = json.loads(COMMIT.to_bytes())
    del words["digest"]
    with pytest.raises(DataError, match="schema version 2 and does not end with its own digest"):
        type(COMMIT).from_bytes(json.dumps(words).encode(), where="x")


def test_a_digest_does_not_make_an_older_record_a_newer_one() -> None:
    older = as_an_older_opd_wrote_it(COMMIT).rstrip()
    with pytest.raises(DataError, match="records of schema version 1 have no digest"):
        type(COMMIT).from_bytes(with_seal(older), where="x")


def test_a_newer_record_is_called_newer_though_its_digest_fits() -> None:
    words = json.loads(COMMIT.to_bytes()) | {"schema_version": NEWEST + 1, "more": 1}
    with pytest.raises(DataError, match="install a newer opd"):
        type(COMMIT).from_bytes(forged(words), where="x")
