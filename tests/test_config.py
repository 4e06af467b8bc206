"""The configuration: every mistake is one message that names the key, nothing is guessed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from schemas.config import RunConfig, StorageSection, TrainSection
from schemas.configfile import config_fingerprint, identity_of, load_config, parse_config
from schemas.errors import ConfigError

TEXT = """
[run]
name = "demo"
root = "data"
seed = 1
rounds = 2

[student]
model = "student"

[teachers.main]
model = "teacher"

[prompts]
train = "prompts.jsonl"
max_tokens = 64

[rollout]
prompts_per_round = 8
samples_per_prompt = 2
max_new_tokens = 16
temperature = 1.0
top_p = 1.0
top_k = 0

[score]
k = 8

[loss]
kind = "reverse_kl"

[train]
learning_rate = 1e-4
sequences_per_step = 4
"""
REQUIRED = [
    "run.name",
    "run.root",
    "run.seed",
    "run.rounds",
    "student.model",
    "teachers.main.model",
    "prompts.train",
    "prompts.max_tokens",
    "rollout.prompts_per_round",
    "rollout.samples_per_prompt",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.top_k",
    "score.k",
    "loss.kind",
    "train.learning_rate",
    "train.sequences_per_step",
]
SECTIONS = ["run", "student", "teachers", "prompts", "rollout", "score", "loss", "train"]
EVAL = ('prompts.eval="held.jsonl"', 'eval.reward="exact_match"')


def parse(*overrides: str, text: str = TEXT) -> RunConfig:
    return parse_config(text, where="run.toml", base=Path("/base"), overrides=overrides)


def message(*overrides: str, text: str = TEXT) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*overrides, text=text)
    return str(caught.value)


def without(key: str) -> str:
    """Return the TOML without a key, or without a whole section."""
    section, _, name = key.rpartition(".")
    kept, inside = [], not section
    for line in TEXT.splitlines():
        if line.startswith("["):
            header = line.strip("[]")
            inside = header == section or (not section and header.split(".")[0] == name)
        if not (inside and (not section or line.startswith(f"{name} ="))):
            kept.append(line)
    return "\n".join(kept)


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}", info
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields_of(kind, f"{prefix}{name}.")


# --- what is read ---


def test_a_minimal_file_has_every_default_that_changes_no_result() -> None:
    config = parse()
    assert config.run.name == "demo"
    assert config.default_teacher == "main"
    assert config.eval is None
    assert config.storage == StorageSection()
    assert config.train.betas == (0.9, 0.95)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    assert f"  {key}: required" in message(text=without(key))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(section: str) -> None:
    assert f"  {section}: required" in message(text=without(section))


def test_no_key_that_changes_results_silently_has_a_default() -> None:
    required = {key for key, field in fields_of(RunConfig) if field.is_required()}
    found = {key.replace("teachers.", "teachers.main.") for key in required} - set(SECTIONS)
    assert {key for key in found if not key.startswith("eval.")} == set(REQUIRED)


def test_all_mistakes_are_told_at_once() -> None:
    text = message("run.seed=-1", "score.k=0", "train.learning_rat=1")
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


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.name='has space'", "run.name"),
        ("run.name=''", "run.name"),
        ("run.name='../up'", "run.name"),
        ("run.seed=2147483648", "run.seed"),
        ("run.seed=1.5", "run.seed"),
        ("run.rounds=0", "run.rounds"),
        ("rollout.temperature=0.0", "rollout.temperature"),
        ("rollout.top_p=1.1", "rollout.top_p"),
        ("loss.kind='sideways_kl'", "loss.kind"),
        ("loss.beta=1.5", "loss.beta"),
        ("train.zero_stage=4", "train.zero_stage"),
        ("train.learning_rate=0", "train.learning_rate"),
        ("teachers.main.dtype='int3'", "teachers.main.dtype"),
        ("storage.retry_s=0", "storage.retry_s"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found(override: str, key: str) -> None:
    assert f"  {key}: " in message(override)
    assert "(found " in message(override)


def test_a_config_needs_at_least_one_teacher() -> None:
    text = without("teachers") + "\n[teachers]\n"
    assert "  teachers: " in message(text=text)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parse().run.seed = 2


# --- files ---


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "run.toml"
    path.parent.mkdir()
    path.write_text(TEXT)
    config = load_config(path, ["run.seed=7"])
    assert config.run.seed == 7
    assert config.resolve("prompts.jsonl") == str(tmp_path / "conf" / "prompts.jsonl")
    assert config.resolve("/abs/x") == "/abs/x"
    assert config.resolve("s3://bucket/x") == "s3://bucket/x"
    assert config.resolve("~/x") == str(Path.home() / "x")


def test_a_missing_file_is_a_config_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`opd init` writes one"):
        load_config(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"did you mean .*/run\.toml\?"):
        load_config(tmp_path / "runn.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[run\n", b"run = 1\nrun = 2\n"])
def test_a_file_that_is_no_toml_is_a_config_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        load_config(path)


def test_a_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path)


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


# --- checks across fields ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.schedule=cosine"], "needs decay_steps"),
        (["train.offload_optimizer=true"], "needs zero_stage of 1 or above"),
        (["loss.kind=policy_gradient", "rollout.top_p=0.9"], "need an untruncated rollout"),
        (["loss.kind=policy_gradient", "rollout.top_k=5"], "need an untruncated rollout"),
        (
            ["loss.kind=policy_gradient", "loss.importance=none", "rollout.temperature=0.7"],
            "set rollout.temperature = 1.0",
        ),
        (["eval.reward=exact_match"], "[eval] needs prompts.eval"),
        (["student.sft_teacher=nobody"], "'nobody' is not one of ['main']"),
        ([*EVAL, "eval.reward=guess"], "is none of exact_match, last_number, regex"),
        ([*EVAL, "eval.reward=regex"], "pattern belongs to reward = 'regex'"),
        ([*EVAL, "eval.pattern='x'"], "pattern belongs to reward = 'regex'"),
        ([*EVAL, "eval.samples_per_prompt=2"], "needs a temperature above 0"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(overrides: list[str], expected: str) -> None:
    assert expected in message(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.schedule=cosine", "train.decay_steps=10"],
        ["train.offload_optimizer=true", "train.zero_stage=1"],
        ["loss.kind=policy_gradient"],
        ["loss.kind=policy_gradient", "loss.importance=none"],
        ["loss.kind=reverse_kl", "rollout.top_p=0.9", "rollout.temperature=0.7"],
        ["student.sft_teacher=main"],
        [*EVAL, "eval.reward=my.module:grade"],
        [*EVAL, "eval.reward=regex", "eval.pattern='x'"],
        [*EVAL, "eval.samples_per_prompt=2", "eval.temperature=0.5"],
    ],
)
def test_fields_that_agree_are_taken(overrides: list[str]) -> None:
    parse(*overrides)


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
        "score.logit_chunk_tokens=1",
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


# --- the schema that editors read ---


def test_every_key_is_described() -> None:
    nameless = [key for key, field in fields_of(RunConfig) if not field.description]
    assert nameless == []


def test_the_json_schema_describes_every_key_and_refuses_others() -> None:
    schema = RunConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description"), (section["title"], key)


def test_every_number_has_a_bound() -> None:
    properties = TrainSection.model_json_schema()["properties"]
    numbers = {key: v for key, v in properties.items() if v.get("type") in ("integer", "number")}
    bounds = {"minimum", "exclusiveMinimum"}
    assert [key for key, value in numbers.items() if not bounds & set(value)] == []
