"""What a DAG run may ask for: the configurations and keys that the settings list, and no others."""

from typing import Any

import pytest

from opd_allowed import refusal
from opd_settings import SAFE_OVERRIDES, Settings, parse_settings
from schemas.config.run import RunConfig

SETTINGS = Settings(
    config="s3://bucket/run.toml", configs=("/data/one.toml", "/runs/", "s3://b/t/")
)


def params(config: Any = "s3://bucket/run.toml", *overrides: str) -> dict[str, Any]:
    return {"config": config, "overrides": list(overrides)}


@pytest.mark.parametrize(
    "config",
    [
        "s3://bucket/run.toml",
        "/data/one.toml",
        "/runs/a.toml",
        "/runs/a b/c.toml",
        "s3://b/t/x.toml",
    ],
)
def test_a_configuration_of_the_settings_is_allowed(config: str) -> None:
    assert refusal(params(config), SETTINGS) is None


@pytest.mark.parametrize(
    "config",
    [
        *("/data/two.toml", "/data/one.toml.bak", "/data/", "data/one.toml", "/runs", "s3://b/t"),
        *("/runs/../etc/run.toml", "/runs/./a.toml", "/runs/a//b.toml", "/runs/\n/a.toml"),
        *("s3://other/run.toml", "s3://bucket/run.toml ", "file:///data/one.toml", "--help"),
        *("/RUNS/a.toml", "/runs/a\u202e.toml", "", None, 3, ["/data/one.toml"]),
    ],
)
def test_any_other_configuration_is_refused_with_those_that_are_allowed(config: Any) -> None:
    told = refusal(params(config), SETTINGS)
    assert told is not None and told.startswith("Param config = ")
    assert "allowed: s3://bucket/run.toml, /data/one.toml, /runs/, s3://b/t/" in told


def test_without_settings_no_configuration_is_allowed() -> None:
    told = refusal(params("/data/run.toml"), Settings())
    assert told is not None and "allowed: none. Add it" in told


@pytest.mark.parametrize(
    "item", ["loss.kind=jsd", "train.lora.rank=8", " run.name =x", "score.k=3"]
)
def test_keys_that_are_numbers_and_choices_may_be_replaced(item: str) -> None:
    assert refusal(params("/runs/a.toml", item), SETTINGS) is None


@pytest.mark.parametrize(
    "item",
    [
        *("eval.reward=os:system", "eval.pattern=x", "run.root=s3://mine", "storage.retry_s=1"),
        *("student.model=x", "student.trust_remote_code=true", "teachers.main.model=x"),
        *("teachers.main.trust_remote_code=true", "prompts.train=/etc/passwd", "prompts.eval=x"),
        *("score.server.urls=['http://x']", "score.server.api_key_env=AWS_SECRET_ACCESS_KEY"),
        *("rollout.engine=server", "rollout.vllm.tensor_parallel_size=2", "score.device=cuda"),
        *('"loss".kind=x', "lossy.kind=x", "Loss.kind=x", "loss", "=loss.kind", "loss .kind=x", ""),
    ],
)
def test_keys_that_name_files_servers_models_or_code_may_not(item: str) -> None:
    told = refusal(params("/runs/a.toml", "loss.kind=jsd", item), SETTINGS)
    assert told is not None and told.startswith("Param overrides: ") and "loss.*" in told


def test_the_settings_decide_which_keys_may_be_replaced() -> None:
    text = 'config = "/r.toml"\noverrides = ["storage.*", "run.root"]'
    settings = parse_settings(text, where="a.toml")
    for item in ("storage.s3.region=x", "run.root=y"):
        assert refusal(params("/r.toml", item), settings) is None
    told = refusal(params("/r.toml", "loss.kind=jsd"), settings)
    assert told is not None and "allowed: storage.*, run.root" in told
    told = refusal(params("/r.toml", "run.root=y"), parse_settings("overrides = []", where="a"))
    assert told is not None


def test_each_safe_key_is_a_key_of_the_configuration() -> None:
    for name in SAFE_OVERRIDES:
        section, _, key = name.partition(".")
        schema = RunConfig.model_json_schema()["$defs"]
        known = [one for one in schema if one.lower().startswith(section)]
        assert known, name
        assert key == "*" or any(key in schema[one].get("properties", ()) for one in known), name
