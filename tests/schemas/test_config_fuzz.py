"""Any TOML tree is a configuration or a `ConfigError`, and what is shown is read back as it was."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config.file import identity_of, parse_config
from schemas.config.run import RunConfig
from schemas.config.tree import MAX_BYTES, decoded
from schemas.errors import ConfigError
from schemas.foreign import printable
from tests.support.minimal import EVAL, parse

KEYS = sorted(
    {
        name
        for section in RunConfig.model_json_schema()["$defs"].values()
        for name in section["properties"]
    }
    | set(RunConfig.model_fields)
)
HARD = st.sampled_from(
    ["", "\0", "\x1b[31m", "~nobody/x", "s3://k:s@b/x", "s3:/b", "inf", "a" * 9999, "\u202e"]
)
LEAVES = st.integers() | st.floats() | st.booleans() | st.datetimes() | st.text(max_size=9) | HARD
NAMES = st.sampled_from(KEYS) | st.text(max_size=4)
TREES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)
)
SECTIONS = [name for name in RunConfig.model_fields if name != "teachers"]


def whole() -> dict[str, Any]:
    """Return the keys of a configuration that has every section."""
    tree: dict[str, Any] = json.loads(parse(*EVAL, "gate.target_accuracy=0.5").model_dump_json())
    return tree


@settings(max_examples=100)
@given(
    st.sampled_from([*SECTIONS, "teachers", "nonsense"]),
    NAMES,
    NAMES,
    TREES,
)
def test_any_tree_is_a_configuration_or_a_config_error(
    section: str, key: str, deeper: str, value: Any
) -> None:
    for changed in (value, {key: value}, {key: {deeper: value}}):
        tree = whole()
        if isinstance(tree.get(section), dict) and isinstance(changed, dict):
            tree[section].update(changed)
        else:
            tree[section] = changed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("schemas.config.file.parse_tree", lambda text, where, tree=tree: tree)
            try:
                config = parse_config("", where="run.toml")
            except ConfigError as error:
                assert len(str(error)) < 20_000
                assert printable(str(error), lines=True) == str(error)
                assert "k:s@" not in str(error)
            else:
                json.dumps(identity_of(config), allow_nan=False)


@given(st.text(max_size=40))
def test_any_text_after_set_is_an_override_or_a_config_error(text: str) -> None:
    for item in (text, f"{text}=1", f"run.name={text}", f"prompts.chat_template_kwargs.x={text}"):
        try:
            config = parse(item)
        except ConfigError:
            continue
        assert isinstance(config, RunConfig)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(decoded(data, where="run.toml"), where="run.toml")


@pytest.mark.parametrize(
    "text",
    ["a." * 20_000 + "a = 1", "a = " + "[" * 20_000, "x = " + "9" * 5000, "x = 0x" + "f" * 9000],
)
def test_text_without_end_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, where="run.toml")
    assert len(str(caught.value)) < 2000


def test_a_longer_file_than_any_configuration_is_not_parsed() -> None:
    with pytest.raises(ConfigError, match="has more than 256 KiB"):
        decoded(b"#" * (MAX_BYTES + 1), where="run.toml")


def test_a_mark_of_byte_order_and_line_ends_of_other_systems_are_borne() -> None:
    assert decoded(b"\xef\xbb\xbfa = 1\r\nb = 2\r", where="x") == "a = 1\nb = 2\n"


SHOWN = st.fixed_dictionaries(
    {},
    optional={
        "run.seed": st.integers(0, 2**31 - 1),
        "train.learning_rate": st.floats(1e-300, 1000),
        "train.eps": st.floats(1e-37, 1),
        "train.betas": st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 0.999)).map(list),
        "rollout.stop_token_ids": st.lists(st.integers(0, 2**31 - 1), max_size=3),
        "rollout.temperature": st.floats(1e-6, 10),
        "score.top_p": st.floats(1e-9, 1),
        "prompts.chat_template_kwargs": st.dictionaries(
            st.text("abc", min_size=1, max_size=3),
            st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=5),
        ),
    },
)


@given(SHOWN)
def test_what_is_shown_is_read_back_as_the_same_run(changes: dict[str, Any]) -> None:
    tree = whole()
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    config = RunConfig.model_validate(tree)
    again = RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert identity_of(again) == identity_of(config)
