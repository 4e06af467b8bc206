"""The configuration: nothing is guessed, contradictions are refused, every key is described."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from schemas.config.run import RunConfig
from schemas.config.storage import StorageSection
from schemas.config.train import TrainSection
from tests.support.minimal import EVAL, message, parse, without

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


@pytest.mark.parametrize("key", [key for key in REQUIRED if key != "score.k"])
def test_a_missing_key_is_named(key: str) -> None:
    assert f"  {key}: required" in message(text=without(key))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(section: str) -> None:
    assert f"  {section}: required" in message(text=without(section))


def test_no_key_that_changes_results_silently_has_a_default() -> None:
    required = {key for key, field in fields_of(RunConfig) if field.is_required()}
    found = {key.replace("teachers.", "teachers.main.") for key in required} - set(SECTIONS)
    optional = ("eval.", "reward.", "schedule.", "track.", "train.lora.")
    assert {key for key in found if not key.startswith(optional)} == set(REQUIRED)


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
        ("rollout.stop_strings=['']", "rollout.stop_strings.0"),
        (f"rollout.stop_strings=['{257 * 'x'}']", "rollout.stop_strings.0"),
        (f"rollout.stop_strings={[str(n) for n in range(17)]}", "rollout.stop_strings"),
        ("rollout.stop_strings=['a', 'b', 'a']", "rollout.stop_strings"),
        ("rollout.stop_strings=['a\ufffd']", "rollout.stop_strings"),
        ("rollout.stop_strings='a'", "rollout.stop_strings"),
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
        ([*EVAL, "eval.reward=my guess"], "a grader is exact_match, last_number, choice, regex"),
        ([*EVAL, "eval.reward=my.module:grade"], "entry point of the group opd.graders"),
        ([*EVAL, "eval.reward=regex"], "pattern belongs to reward = 'regex', which needs it: give"),
        ([*EVAL, "eval.pattern='x'"], "which needs it: remove it for 'exact_match'"),
        ([*EVAL, "eval.samples_per_prompt=2"], "needs a temperature above 0"),
        (["rollout.vllm.keep_between_stages=true"], "needs engine = 'vllm', and it is 'hf'"),
        (
            ["score.engine=vllm", "score.vllm.keep_between_stages=true"],
            "is for [rollout.vllm] and [eval.vllm]",
        ),
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
        [*EVAL, "eval.reward=module:grade"],
        [*EVAL, "eval.reward=grader.py:grade"],
        [*EVAL, "eval.reward=regex", "eval.pattern='x'"],
        [*EVAL, "eval.samples_per_prompt=2", "eval.temperature=0.5"],
        ["rollout.engine=vllm", "rollout.vllm.keep_between_stages=true"],
    ],
)
def test_fields_that_agree_are_taken(overrides: list[str]) -> None:
    parse(*overrides)


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


def test_a_section_says_how_long_a_response_may_be_or_that_it_does_not() -> None:
    config = parse("rollout.max_new_tokens=9", "eval.reward=exact_match", "prompts.eval=p.jsonl")
    assert (config.rollout.response_limit, config.score.response_limit) == (9, None)
    assert config.eval is not None and config.eval.response_limit is None
    own = parse("eval.reward=exact_match", "prompts.eval=p.jsonl", "eval.max_new_tokens=5").eval
    assert own is not None and own.response_limit == 5
