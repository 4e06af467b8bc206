"""From TOML text and overrides to a checked configuration, its messages and its identity."""

import json

import pytest

from schemas.config.file import config_fingerprint, identity_of
from tests.support.minimal import EVAL, message, parse, without

# --- messages ---


def test_all_mistakes_are_told_at_once() -> None:
    text = message("run.seed=-1", "score.k=-1", "train.learning_rat=1")
    assert text.startswith("run.toml is not a valid configuration:\n")
    assert all(key in text for key in ("run.seed", "score.k", "train.learning_rat"))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trian.learning_rate=1", "trian: unknown key; did you mean 'train'?"),
        ("train.learning_rat=1", "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("teachers.main.dtyp='x'", "teachers.main.dtyp: unknown key; did you mean 'dtype'?"),
        ("storage.retrys=1", "storage.retrys: unknown key; did you mean 'retry_s'?"),
        ("run.zzz=1", "run.zzz: unknown key; known: name, root, seed, rounds"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(override: str, hint: str) -> None:
    assert hint in message(override)


def test_an_unknown_key_of_an_optional_section_has_a_hint() -> None:
    expected = "eval.rewrd: unknown key; did you mean 'reward'?"
    assert expected in message(*EVAL, "eval.rewrd='x'")


def test_a_value_in_the_place_of_a_list_is_refused_with_what_a_list_looks_like() -> None:
    told = message("rollout.stop_strings='a'")
    assert "rollout.stop_strings: expected a list, such as [1, 2] or ['a'] (found 'a')" in told


# --- overrides ---


def test_overrides_take_toml_values_and_bare_words() -> None:
    config = parse(
        "train.learning_rate=2e-6",
        "loss.kind=forward_kl",
        "run.name = 'other'",
        "train.offload_optimizer=true",
        "train.zero_stage=1",
        "train.betas=[0.8, 0.9]",
        "run.root=s3://bucket/a=b",
        "teachers.second.model=big",
    )
    assert config.train.learning_rate == 2e-6
    assert config.loss.kind == "forward_kl"
    assert config.run.name == "other"
    assert config.train.offload_optimizer
    assert config.train.betas == (0.8, 0.9)
    assert config.run.root == "s3://bucket/a=b"
    assert list(config.teachers) == ["main", "second"]


def test_an_override_can_open_a_section_that_the_file_lacks() -> None:
    config = parse(*EVAL, "eval.max_prompts=3")
    assert config.eval is not None
    assert config.eval.max_prompts == 3


@pytest.mark.parametrize("item", ["train", "seed=1", "=1", "run.=1", ".seed=1", ""])
def test_a_malformed_override_is_a_config_error(item: str) -> None:
    assert "--set takes section.key=value" in message(item)


def test_an_override_below_a_value_is_a_config_error() -> None:
    assert "'seed' is a value, not a section" in message("run.seed.deeper=1")


# --- identity ---


def test_the_identity_is_the_resolved_dotted_keys_as_json() -> None:
    identity = identity_of(parse())
    assert identity["rollout.temperature"] == 1.0
    assert identity["teachers.main.model"] == "teacher"
    assert identity["eval"] is None
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    "override",
    [
        "run.root=elsewhere",
        "run.rounds=9",
        "storage.retry_s=1",
        "storage.addressing_style=path",
        "rollout.device=cuda",
        "rollout.batch_tokens=1",
        "score.logit_chunk_mb=1",
        "train.zero_stage=3",
        "train.num_processes=2",
        "train.micro_batch_tokens=1",
        "train.save_steps=3",
    ],
)
def test_what_affects_speed_or_place_alone_is_not_identity(override: str) -> None:
    assert config_fingerprint(parse(override)) == config_fingerprint(parse())


@pytest.mark.parametrize(
    "override",
    [
        "run.name=x",
        "run.seed=2",
        "student.model=x",
        "student.revision=x",
        "teachers.main.model=x",
        "teachers.main.dtype=bfloat16",
        "teachers.second.model=x",
        "prompts.train=x",
        "rollout.temperature=0.5",
        "rollout.stop_token_ids=[1]",
        "rollout.stop_strings=['a']",
        "rollout.prompts_per_unit=1",
        "score.k=9",
        "loss.kind=forward_kl",
        "loss.beta=0.25",
        "train.learning_rate=1",
        "train.betas=[0.9, 0.99]",
        "train.max_staleness=1",
    ],
)
def test_what_changes_results_is_identity(override: str) -> None:
    assert config_fingerprint(parse(override)) != config_fingerprint(parse())


@pytest.mark.parametrize(
    "key", ["rollout.stop_strings", "student.base", "teachers.main.base_revision", "train.lora"]
)
def test_a_key_that_came_later_is_no_identity_where_it_says_nothing(key: str) -> None:
    assert key not in identity_of(parse())


def test_the_order_of_teachers_is_identity_because_the_first_is_the_default() -> None:
    swapped = without("teachers") + "\n".join(
        ["", "[teachers.second]", "model = 'b'", "[teachers.main]", "model = 'teacher'"]
    )
    one, two = parse("teachers.second.model=b"), parse(text=swapped)
    assert (one.default_teacher, two.default_teacher) == ("main", "second")
    assert config_fingerprint(one) != config_fingerprint(two)


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    text = without("run.seed") + "\n[storage]\nretry_s = 5\n"
    assert config_fingerprint(parse("run.seed=1", text=text)) == config_fingerprint(parse())
