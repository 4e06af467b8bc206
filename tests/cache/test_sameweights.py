"""Scores of the same weights: when they are taken, what is written down, and never otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.sameweights import are_siblings, borrow, find_siblings
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.cache.scorers import find_identity
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from pipeline.upkeep.inventory import cache_commits
from schemas.fingerprint import fingerprint
from schemas.keys import scorer_folder
from schemas.records.scores import ScorerIdentity
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run
from tests.support.tinytables import make_scorer, rollout_table, score_rows


def scored(cli: Cli, folder: Path, name: str, *arguments: str, **changes: object) -> Any:
    """Return what scoring round 0 of a new run in a folder gave; dots in keys are `__`."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    config = write_run(
        folder, changes={"run.name": name, "eval": None, **named}, file=f"{name}.toml"
    )
    cli.ok("rollout", "-c", config, "--round", "0")
    return cli.ok("score", "-c", config, "--round", "0", *arguments)


def manifest_of(folder: Path, name: str) -> Any:
    key = f"store/runs/{name}/rounds/0000/score/main/manifest.json"
    return json.loads((folder / key).read_text())


def first_scores(folder: Path, name: str) -> list[float]:
    """Return the log-probabilities of the first sampled sequence of a run's round 0."""
    run = manifest_of(folder, name)
    shard = next(
        commit.shard
        for commit in cache_commits(Storage(str(folder / "store")), run["scorer"])
        if commit.shard.key == run["units"][0]["shard"]["key"]
    )
    table = read_scores(Storage(str(folder / "store")), shard, scorer=run["scorer"])
    values: list[float] = table.column("token_logprob")[0].as_py()
    return values


# --- whole stages ---


def test_the_same_weights_in_another_dtype_are_not_asked_again(run_copy: Path, cli: Cli) -> None:
    full = manifest_of(run_copy, "tiny")["scorer"]
    result = scored(
        cli, run_copy, "shared", teachers__main__dtype="bfloat16", score__reuse="same-weights"
    )
    assert (result["teacher_tokens"], result["reused_rows"]) == (0, 16)
    assert (result["engine_start_s"], result["sibling_rows"]) == (0.0, {full: 16})

    manifest = manifest_of(run_copy, "shared")
    assert manifest["scorer"] != full
    assert manifest["sibling_rows"] == {full: 16}
    storage = Storage(str(run_copy / "store"))
    commits = list(cache_commits(storage, manifest["scorer"]))
    assert [commit.sibling_rows for commit in commits] == [{full: 4}] * 4
    assert first_scores(run_copy, "shared") == first_scores(run_copy, "tiny")
    assert cli.ok("status", "-c", run_copy / "shared.toml")["rounds"][0]["reused_rows"] == 16
    assert "same-weights" in cli("cache", "ls", "-c", run_copy / "shared.toml").stdout

    gone = cli.ok("cache", "gc", "-c", run_copy / "shared.toml", "--delete", "--older-than", "0")
    assert gone["objects"] == 0
    assert cli.ok("cache", "verify", "-c", run_copy / "shared.toml")["exit_code"] == 0
    cli.ok("train", "-c", run_copy / "shared.toml", "--round", "0")


def test_an_exact_run_is_never_served_from_a_sibling(run_copy: Path, cli: Cli) -> None:
    scored(cli, run_copy, "shared", teachers__main__dtype="bfloat16", score__reuse="same-weights")
    result = scored(cli, run_copy, "half", teachers__main__dtype="bfloat16")
    assert result["teacher_tokens"] > 0
    assert (result["reused_rows"], result["sibling_rows"]) == (0, {})
    assert manifest_of(run_copy, "half")["scorer"] != manifest_of(run_copy, "shared")["scorer"]
    assert first_scores(run_copy, "half") != first_scores(run_copy, "tiny")
    again = scored(cli, run_copy, "again", score__codec="packed-v1")
    assert again["teacher_tokens"] > 0


def test_the_nearest_sibling_is_asked_first_and_the_teacher_last(run_copy: Path, cli: Cli) -> None:
    scored(cli, run_copy, "half", "--worker", "1/2", teachers__main__dtype="bfloat16")
    result = scored(
        cli, run_copy, "both", teachers__main__dtype="bfloat16", score__reuse="same-weights"
    )
    keys = Storage(str(run_copy / "store")).folders("cache")
    full, own = (manifest_of(run_copy, name)["scorer"] for name in ("tiny", "both"))
    (half,) = keys - {full, own}
    assert result["sibling_rows"] == {full: 8, half: 8}
    assert result["teacher_tokens"] == 0


def test_what_no_sibling_has_is_scored_and_counted(tmp_path: Path, cli: Cli) -> None:
    part = scored(cli, tmp_path, "full", "--worker", "0/2")
    result = scored(
        cli,
        tmp_path,
        "shared",
        teachers__main__dtype="bfloat16",
        score__reuse="same-weights",
        score__codec="packed-v1",
        rollout__prompts_per_unit=8,
    )
    assert result["reused_rows"] == sum(result["sibling_rows"].values()) == 8
    assert result["teacher_tokens"] == pytest.approx(part["teacher_tokens"], rel=0.5)
    again = scored(
        cli,
        tmp_path,
        "later",
        teachers__main__dtype="bfloat16",
        score__reuse="same-weights",
        score__codec="packed-v1",
    )
    assert (again["teacher_tokens"], again["reused_rows"], again["sibling_rows"]) == (0, 16, {})


def test_other_weights_and_another_signal_are_never_taken(run_copy: Path, cli: Cli) -> None:
    make_model(run_copy / "other", seed=9, teacher=True)
    for name, key, value in (
        ("fewer", "score__k", 2),
        ("drawn", "score__draws", 2),
        ("stranger", "teachers__main__model", "other"),
    ):
        result = scored(cli, run_copy, name, score__reuse="same-weights", **{key: value})
        assert result["teacher_tokens"] > 0
        assert (result["reused_rows"], result["sibling_rows"]) == (0, {})


def test_a_run_cannot_begin_exact_and_go_on_otherwise(run_copy: Path, cli: Cli) -> None:
    outcome = cli(
        "score",
        *("-c", run_copy / "run.toml", "--round", "0", "--set", "score.reuse=same-weights"),
    )
    assert outcome.code == 3
    assert "score.reuse: the run began with 'exact', now 'same-weights'" in outcome.stderr


# --- scorers ---


def like(scorer: Scorer, **changes: object) -> Scorer:
    return replace(scorer, identity=scorer.identity.model_copy(update=changes))


OWN = like(make_scorer(), reuse="same-weights")


def stored(storage: Storage, scorer: Scorer, *, units: int = 1, seed: int = 0) -> Scorer:
    """Describe a scorer in a root and give its cache units of random scores."""
    storage.put(f"{scorer.folder}/scorer.json", scorer.identity.to_bytes())
    cache = ScoreCache(storage, scorer.identity, print)
    for unit in range(units):
        rows = rollout_table(4, seed=seed + unit)
        digest = fingerprint(rows.column("sequence_digest").to_pylist())
        cache.publish(digest, score_rows(rows, seed=seed), Origin("demo/0000", 1, 0))
    return scorer


def test_an_exact_identity_keeps_the_key_it_had_before_the_field(local_storage: Storage) -> None:
    scorer = make_scorer()
    assert scorer.key == "018029139c4ceaafd739878045bbc11c"
    assert b"reuse" not in scorer.identity.to_bytes()
    assert OWN.key != scorer.key
    assert find_identity(local_storage, stored(local_storage, OWN).key) == OWN.identity


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reuse": "exact"}, True),
        ({"engine": "vllm", "engine_version": "9"}, True),
        ({"dtype": "bfloat16", "codec": "packed-v1"}, True),
        ({"model": {"weights": "other"}}, False),
        ({"model": {"hub": "main", "revision": "0" * 40}}, False),
        ({"quantization": "4 bits"}, False),
        ({"tokenizer": "u"}, False),
        ({"template": "system"}, False),
        ({"vocab_size": 12}, False),
        ({"signal": {"k": 4}}, False),
        ({"signal": {"k": 3, "draws": 1}}, False),
        ({"lineage": ("0" * 32,)}, False),
        ({"schema_version": 0}, False),
    ],
)
def test_siblings_differ_in_how_the_weights_are_run_only(
    changes: dict[str, object], expected: bool
) -> None:
    other = OWN.identity.model_copy(update=changes)
    assert are_siblings(OWN.identity, other) is expected
    assert are_siblings(other, OWN.identity) is expected


def test_every_field_of_an_identity_is_compared_or_known_to_be_free() -> None:
    compared = {"model", "quantization", "tokenizer", "template", "vocab_size", "signal"}
    free = {"engine", "engine_version", "dtype", "codec", "reuse"}
    assert set(ScorerIdentity.model_fields) == compared | free | {"lineage", "schema_version"}


def test_an_exact_scorer_has_no_siblings(local_storage: Storage) -> None:
    stored(local_storage, OWN)
    assert find_siblings(local_storage, make_scorer().identity, print) == []


def test_the_most_alike_come_first(local_storage: Storage) -> None:
    near, far = like(OWN, dtype="float16"), like(OWN, dtype="float16", engine_version="2")
    twin = stored(local_storage, make_scorer())
    for scorer in (far, near, make_scorer("other"), OWN):
        stored(local_storage, scorer)
    found = [cache.scorer for cache in find_siblings(local_storage, OWN.identity, print)]
    assert found == [*sorted([near.key, twin.key]), far.key]


def test_a_scorer_that_cannot_be_trusted_is_named_or_left_out(local_storage: Storage) -> None:
    notes: list[str] = []
    local_storage.put("cache/torn/scorer.json", b"{")
    local_storage.put("cache/undescribed/data/x", b"")
    local_storage.put("cache/changed/scorer.json", make_scorer().identity.to_bytes())
    assert find_siblings(local_storage, OWN.identity, notes.append) == []
    assert len(notes) == 1
    assert "cache/torn/scorer.json" in notes[0]


def test_a_sibling_with_a_damaged_index_costs_its_reuse_only(local_storage: Storage) -> None:
    first = stored(local_storage, make_scorer())
    second = stored(local_storage, like(OWN, dtype="float16", engine_version="2"), units=2)
    (name,) = local_storage.names(f"{first.folder}/index/new")
    local_storage.put(f"{first.folder}/index/new/{name}", b"{")
    notes: list[str] = []
    siblings = find_siblings(local_storage, OWN.identity, notes.append)
    digests = rollout_table(4, seed=1).column("sequence_digest").to_pylist()
    found = borrow(siblings, digests, notes.append)
    assert {key: table.num_rows for key, table in found.items()} == {second.key: 4}
    assert len(notes) == 1


class Counting(Storage):
    """A store that counts its reads and listings."""

    def __init__(self, root: str) -> None:
        """Start at nothing."""
        super().__init__(root)
        self.calls = 0

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes."""
        self.calls += 1
        return super().get(key)

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder."""
        self.calls += 1
        return super().names(folder)

    def folders(self, folder: str) -> set[str]:
        """Return the folders in a folder."""
        self.calls += 1
        return super().folders(folder)


def test_finding_siblings_reads_one_object_of_each_whatever_they_hold(tmp_path: Path) -> None:
    storage = Counting(str(tmp_path))
    stored(storage, make_scorer())
    storage.calls = 0
    assert (len(find_siblings(storage, OWN.identity, print)), storage.calls) == (1, 2)
    stored(storage, make_scorer(), units=30, seed=5)
    storage.calls = 0
    assert (len(find_siblings(storage, OWN.identity, print)), storage.calls) == (1, 2)
    (sibling,) = find_siblings(storage, OWN.identity, print)
    storage.calls = 0
    digests = rollout_table(4, seed=20).column("sequence_digest").to_pylist()
    assert borrow([sibling], digests, print)[sibling.scorer].num_rows == 4
    assert storage.calls < 25
    assert storage.exists(f"{scorer_folder(sibling.scorer)}/scorer.json")
