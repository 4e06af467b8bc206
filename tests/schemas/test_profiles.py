"""The base of a TOML: a profile's values under those of the file, and what is said of them."""

import hashlib
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import check_run, open_run, pin_run
from schemas.config.file import config_fingerprint, identity_of, parse_based, parse_config
from schemas.config.profiles import base
from schemas.config.profiles.base import profile_names
from schemas.errors import ConfigError, IdentityError

TEXT = """\
base = "opd:full"
[run]
name = "mine"
root = "data"
[student]
model = "student"
[teachers.main]
model = "teacher"
[prompts]
train = "prompts.jsonl"
"""

FROZEN = {
    "opd:cpu@1": "91a17a837f239816",
    "opd:full@1": "ee8b6a76ea3d9553",
    "opd:lora@1": "7d94ba9d187fa18e",
}
"""Profile → sha256 of its file: a version that was released never changes. Make a new one."""


def text_of(name: str) -> str:
    file = name.removeprefix("opd:").replace("@", "-") + ".toml"
    return (resources.files("schemas.config.profiles") / file).read_text(encoding="utf-8")


def told(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, where="run.toml", overrides=overrides)
    return str(caught.value)


def test_a_released_profile_never_changes() -> None:
    found = {n: hashlib.sha256(text_of(n).encode()).hexdigest()[:16] for n in profile_names()}
    assert found == FROZEN


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_every_value_of_a_profile_has_its_reason_above_it(name: str) -> None:
    lines = text_of(name).splitlines()
    values = [index for index, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(values) > 20
    assert [lines[i] for i in values if not lines[i - 1].startswith("# ")] == []


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_seven_lines_are_a_configuration_with_each_profile(name: str) -> None:
    found = parse_based(TEXT.replace("opd:full", name), where="run.toml")
    assert found.base is not None and found.base.name == name
    assert "teachers.main.dtype" in found.base.keys
    assert (found.config.train.lora is None) == ("lora" not in name)
    assert found.config.eval is None


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_a_profile_fits_an_eval_too(name: str) -> None:
    overrides = ('prompts.eval="held.jsonl"', 'eval.reward="exact_match"')
    text = TEXT.replace("opd:full", name)
    found = parse_config(text, where="run.toml", overrides=overrides)
    assert found.eval is not None
    assert found.eval.engine == "hf"


def test_the_file_and_its_overrides_win_over_the_base() -> None:
    text = TEXT + "[train]\nlearning_rate = 3e-6\n[rollout]\nprompts_per_round = 7\n"
    found = parse_based(text, where="run.toml", overrides=["score.k=5", "student.dtype=float32"])
    config = found.config
    assert (config.train.learning_rate, config.rollout.prompts_per_round) == (3e-6, 7)
    assert (config.score.k, config.student.dtype) == (5, "float32")
    assert found.base is not None
    own = {"train.learning_rate", "rollout.prompts_per_round", "score.k", "student.dtype"}
    assert found.base.keys.isdisjoint(own)
    assert "train.warmup_steps" in found.base.keys


def test_each_teacher_gets_the_values_of_every_teacher_and_their_order_stays() -> None:
    text = TEXT + '[teachers.a]\nmodel = "a"\ndtype = "float32"\n'
    config = parse_config(text, where="run.toml")
    assert {name: one.dtype for name, one in config.teachers.items()} == {
        "main": "bfloat16",
        "a": "float32",
    }
    assert config.default_teacher == "main"


def test_what_a_run_is_holds_the_values_of_its_base_and_not_its_name() -> None:
    config = parse_config(TEXT, where="run.toml")
    plain = tomllib.loads(text_of("opd:full@1"))
    identity = identity_of(config)
    assert identity["train.learning_rate"] == plain["train"]["learning_rate"]
    assert not any("opd:full" in str(value) for value in identity.values())
    versioned = parse_config(TEXT.replace("opd:full", "opd:full@1"), where="run.toml")
    assert config_fingerprint(config) == config_fingerprint(versioned)


@pytest.mark.parametrize(
    "given", ['"opd:gpu"', '"opd:cpu@99"', "3", "[1]", "{a = 1}", '"full.toml"']
)
def test_an_unknown_base_is_refused_with_those_that_there_are(given: str) -> None:
    found = told(TEXT.replace('"opd:full"', given))
    assert "run.toml" in found and "base: there is no profile" in found
    assert all(name in found for name in ("opd:cpu, ", "opd:full@1", "opd:lora@1"))


def test_a_base_below_a_table_is_told_where_it_stands() -> None:
    found = told(TEXT + '[train]\nbase = "opd:lora"\n')
    assert "train.base: unknown key; the base of the file stands above its first table" in found


def test_a_table_that_is_a_value_is_refused_and_nothing_is_put_under_it() -> None:
    assert "train: " in told('base = "opd:cpu"\ntrain = 3\n' + TEXT.split("\n", 1)[1])
    flat = TEXT.replace('[teachers.main]\nmodel = "teacher"', "")
    assert "teachers.main: " in told(flat, "teachers.main=3")


def test_a_mistake_names_the_base_where_the_value_is_its(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = text_of("opd:full@1").replace("epochs = 1", "epochs = -1")
    monkeypatch.setattr(base, "profile_text", lambda _: broken)
    assert "train.epochs: " in (found := told(TEXT))
    assert "its value is that of opd:full@1" in found


def test_a_newer_version_of_a_profile_is_told_to_a_run_that_began_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    pin_run(open_run(load_config(path)))
    newer = text_of("opd:full@1").replace("epochs = 1", "epochs = 2")
    older = text_of("opd:full@1")
    monkeypatch.setattr(base, "profile_names", lambda: ["opd:full@1", "opd:full@2"])
    monkeypatch.setattr(base, "profile_text", lambda name: newer if name.endswith("2") else older)
    with pytest.raises(IdentityError, match=r"began with 1, now 2") as caught:
        check_run(open_run(load_config(path)))
    assert 'write base = "opd:full@1"' in str(caught.value)
    path.write_text(TEXT.replace("opd:full", "opd:full@1"))
    check_run(open_run(load_config(path)))
