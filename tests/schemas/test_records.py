"""Manifests: exact bytes, no unknown keys, and newer versions refused by name."""

import json
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel, JsonValue, ValidationError

from schemas import forms, keys
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.records import index, rewards, runs, scores, shards, training
from schemas.records.record import Record
from schemas.records.seal import NEWEST
from schemas.records.shards import Commit, Shard
from tests.support.forged import forged

SHA256 = "ab" * 32
SHARD = Shard(key=f"data/{SHA256}.parquet", sha256=SHA256, bytes=10, rows=2, tokens=7)
COMMIT = Commit(unit="00001", shard=SHARD, fingerprint="f" * 32, attempt="a1")

DIGEST = "cd" * 16
VALUES: list[tuple[Any, Any]] = [
    *((forms.Key, f"rollouts/{SHA256}.parquet"), (forms.Sha256, SHA256), (forms.Digest, DIGEST)),
    *(
        (forms.FileName, "u00000"),
        (forms.ModelFile, "config.json"),
        (forms.Label, "teacher/main"),
        (forms.Mark, "policy-1"),
    ),
    *((str, "é\n"), (forms.Words, "é"), (int, 3), (forms.Count, 3), (forms.Place, 2**64 - 1)),
    *((forms.Real, 0.25), (bool, True), (Any, [1, None, {"k": "v"}])),
    (JsonValue, {"dict": [["a", 1.5], ["b", None]]}),
    *((dict[str, Any], {"k": 3, "key": [1, None, {"k": "v"}]}),),
]
"""A value for each form of a field."""

FOLDERS = {
    rewards.RewardManifest: keys.REWARDS,
    scores.ScoreManifest: keys.data_folder(DIGEST),
    runs.PromptsManifest: keys.PROMPTS,
    training.TrainManifest: keys.metrics_folder("u00000"),
}
"""Where the shards of a record must be, if not in any folder or with the rollouts."""

NAME = "mp_rank_00_model_states.json"
"""A file of a learner's state."""

KINDS = [
    kind
    for module in (index, rewards, runs, scores, shards, training)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind.__module__ == module.__name__
]


def example(kind: type[BaseModel], *, absent: bool) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    names = [name for name in kind.model_fields if name != "schema_version"]
    found = {name: value_of(hints[name], absent=absent) for name in names}
    if kind in FOLDERS:
        shard = example(Shard, absent=absent)
        shard = shard.model_copy(update={"key": keys.shard_key(FOLDERS[kind], SHA256)})
        units = (shards.UnitShard(unit="u00000", shard=shard),)
        placed = {"units": units, "shards": (shard,), "metrics": shard}
        if kind is training.TrainManifest:
            del placed["shards"]
        found |= {name: value for name, value in placed.items() if name in names}
    if kind is runs.RunRecord:
        found["fingerprint"] = fingerprint(found["identity"])
    if kind is rewards.RewardManifest:
        found["grader"] = fingerprint(found["identity"])
        faults, few = ({"é": 3}, 0) if absent else ({"é": 2}, 1)
        found |= {"faults": faults, "rewarded": few, "groups": few, "rows": 3, "tokens": 3}
        found["groups_without_spread"] = few
    if kind is runs.AdmissionRecord:
        found["fingerprint"] = fingerprint(found["seen"])
    return fitting(kind(**found))


def fitting(record: Any) -> Any:
    """Return a record with the fingerprint of what it says, where it is one of a plan."""
    if not isinstance(record, runs.RolloutPlan):
        return record
    facts = record.model_dump(mode="json", exclude={"fingerprint", "schema_version"})
    return record.model_copy(update={"fingerprint": fingerprint(facts)})


def value_of(hint: Any, *, absent: bool) -> Any:
    known = [value for form, value in VALUES if form == hint]
    if known:
        return known[0]
    if get_origin(hint) is Annotated:
        return 3
    arguments = get_args(hint)
    if NoneType in arguments:
        return None if absent else value_of(arguments[0], absent=absent)
    if get_origin(hint) is Literal:
        return arguments[0]
    if get_origin(hint) is tuple:
        return (value_of(arguments[0], absent=absent),)
    if get_origin(hint) is dict:
        key = NAME if arguments == (str, Shard) else value_of(arguments[0], absent=absent)
        return {key: value_of(arguments[1], absent=absent)}
    return example(hint, absent=absent)


def changed(**changes: Any) -> bytes:
    return forged({**json.loads(COMMIT.to_bytes()), **changes})


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_survives_its_bytes(kind: type[Record], absent: bool) -> None:
    record = example(kind, absent=absent)
    data = record.to_bytes()
    assert kind.from_bytes(data, where="x") == record
    assert kind.from_bytes(data, where="x").to_bytes() == data


def test_the_bytes_are_canonical_and_end_with_a_line_feed() -> None:
    data = COMMIT.to_bytes()
    assert data.startswith(b'{"attempt":"a1","fingerprint":')
    assert data.endswith(b"}\n")
    assert f'"schema_version":{NEWEST}'.encode() in data


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_later_field_that_says_nothing_is_left_out(kind: type[Record]) -> None:
    for name in kind.LATER:
        default = kind.model_fields[name].default
        silent = fitting(example(kind, absent=False).model_copy(update={name: default}))
        assert name not in json.loads(silent.to_bytes())
        assert kind.from_bytes(silent.to_bytes(), where="x") == silent
        assert name in json.loads(example(kind, absent=False).to_bytes())


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        COMMIT.unit = "other"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the whole object"),
        (COMMIT.to_bytes()[:40], "the whole object"),
        (b"\xff\x00", "the whole object"),
        (b"[]", "the whole object"),
        (b"null", "the whole object"),
        (b"{}", "unit"),
        (changed(extra=1), "extra"),
        (changed(unit=None), "unit"),
        (changed(shard={"key": "x"}), r"shard\.sha256"),
    ],
)
def test_damage_is_a_data_error_that_names_object_and_field(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"store/c.json is not a Commit: {reason}: "):
        Commit.from_bytes(data, where="store/c.json")


@pytest.mark.parametrize("extra", [{}, {"a_new_key": 1}])
def test_a_newer_version_is_refused_and_named(extra: dict[str, int]) -> None:
    newer = changed(schema_version=NEWEST + 5, **extra)
    with pytest.raises(DataError) as caught:
        Commit.from_bytes(newer, where="store/c.json")
    expected = f"store/c.json has schema version {NEWEST + 5}; this opd reads up to"
    assert expected in str(caught.value)
    assert "install a newer opd" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": {"grader": "other"}}, "its grader has the fingerprint"),
        ({"rewarded": 2}, "2 rows have a reward"),
        ({"groups": 2}, "2 prompts have a reward"),
        ({"groups_without_spread": 2}, "1 prompts have a reward, 2 of one kind"),
        ({"mean": None}, "the mean of 1 rewards is None"),
        ({"rows": 4, "faults": {"died": 3}}, "its shards have 3 rows"),
    ],
)
def test_rewards_that_do_not_add_up_are_refused(change: dict[str, Any], words: str) -> None:
    whole = json.loads(example(rewards.RewardManifest, absent=False).to_bytes())
    with pytest.raises(DataError, match=words):
        rewards.RewardManifest.from_bytes(forged({**whole, **change}), where="x")
