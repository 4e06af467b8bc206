"""What is left of a run, the calls of a round, and configurations that are read from a store."""

import json
import math
from pathlib import Path

import pytest

from pipeline.models.source import find_model
from pipeline.runs.configsource import read_config
from pipeline.runs.forecast import forecast
from pipeline.runs.run import open_run
from pipeline.runs.tasks import round_tasks
from pipeline.store.storage import Storage
from schemas.config.file import load_config
from schemas.errors import ConfigError, IdentityError
from tests.support.minimal import TEXT, parse
from tests.support.runs import Cli
from tests.support.tiny import write_run

# --- forecasts ---


def test_before_the_first_round_a_forecast_is_what_nothing_exceeds(tmp_path: Path) -> None:
    run = open_run(load_config(write_run(tmp_path)))
    ahead = forecast(run, first=0, rounds=2)
    assert (ahead.rounds, ahead.units, ahead.rows, ahead.basis) == (2, 8, 32, "limits")
    assert ahead.response_tokens == 32 * 12 and ahead.teacher_tokens == 32 * (40 + 12)
    assert ahead.cache_bytes == 32 * 12 * (6 * 4 + 16) and ahead.seconds == {}


def test_every_signal_counts_in_the_bytes_of_a_forecast(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    plain = forecast(open_run(load_config(config)), first=0, rounds=1).cache_bytes
    for more in ("score.tail_buckets=8", "score.draws=4", "rollout.candidates=3", "score.k=5"):
        run = open_run(load_config(config, [more]))
        assert forecast(run, first=0, rounds=1).cache_bytes > plain


def test_later_a_forecast_goes_by_the_last_scored_round(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    rollout, score = run.rollout(1), run.score(1, "main")
    assert rollout is not None and score is not None
    ahead = forecast(run, first=2, rounds=4)
    assert ahead.basis == "round 1" and (ahead.rounds, ahead.rows) == (2, 32)
    assert ahead.response_tokens == 2 * rollout.tokens
    assert ahead.cache_bytes == 2 * sum(unit.shard.bytes for unit in score.units)
    assert ahead.teacher_tokens == round(
        32 * score.teacher_tokens / (score.rows - score.reused_rows)
    )
    assert set(ahead.seconds) == {"rollout", "score", "train", "eval"}
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in ahead.seconds.values())


def test_a_forecast_is_within_the_limits_that_were_told_before(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    most = forecast(
        open_run(load_config(finished_run / "run.toml", ["run.name=x"])), first=0, rounds=1
    )
    now = forecast(run, first=2, rounds=3)
    assert now.response_tokens <= most.response_tokens
    assert now.teacher_tokens <= most.teacher_tokens


def test_plan_shows_what_is_left(finished_run: Path, cli: Cli) -> None:
    config = finished_run / "run.toml"
    assert "all 2 rounds are done" in cli("plan", "-c", config).stdout
    text = cli("plan", "-c", config, "--rounds", "3").stdout
    assert "1 of 3 rounds are left" in text and "by the rates of round 1" in text
    said = cli.ok("plan", "-c", config, "--rounds", "3")
    assert (said["rounds"], said["round"], said["target"]) == (1, None, 3)
    assert "rollout" not in said


# --- the calls of a round ---


def test_a_round_has_calls_for_workers_and_teachers(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("a", "b"))
    said = cli.ok("plan", "-c", config, "--round", "0", "--workers", "2")
    assert said["rollout"] == [{"worker": 0}, {"worker": 1}]
    assert said["score"] == [
        {"teacher": teacher, "worker": index} for teacher in ("a", "b") for index in (0, 1)
    ]
    assert [len(said[stage]) for stage in ("baseline", "train", "eval")] == [1, 1, 1]
    assert (said["state"], said["rows"]) == ("due", 16)


def test_some_teachers_alone_do_not_train(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("a", "b"))
    said = cli.ok("plan", "-c", config, "--round", "0", "--teacher", "b")
    assert said["score"] == [{"teacher": "b", "worker": 0}]
    assert said["train"] == said["eval"] == []
    both = cli.ok("plan", "-c", config, "--round", "0", "--teacher", "b", "--teacher", "a")
    assert len(both["score"]) == 2 and both["train"]
    found = cli("plan", "-c", config, "--round", "0", "--teacher", "c")
    assert found.code == 2 and "no teacher 'c'; known: a, b" in found.stderr


def test_a_dry_run_and_rounds_that_are_not_asked_for_have_no_calls(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    for options in (["--dry-run"], ["--from-round", "1"]):
        said = cli.ok("plan", "-c", config, "--round", "0", *options)
        assert not any(said[stage] for stage in ("rollout", "score", "train", "eval"))
        assert said["state"] == ("due" if options == ["--dry-run"] else "outside")


def test_eval_comes_every_few_rounds_and_at_the_end(finished_run: Path) -> None:
    every = load_config(finished_run / "run.toml", ["eval.every_rounds=2"])
    calls = [round_tasks(open_run(every), i, rounds=range(3), workers=1).eval for i in range(3)]
    assert [bool(one) for one in calls] == [False, True, True]


def test_without_an_eval_nothing_is_graded(tmp_path: Path) -> None:
    changes = {"eval": None, "prompts.eval": None}
    run = open_run(load_config(write_run(tmp_path, changes=changes)))
    found = round_tasks(run, 0, rounds=range(1), workers=3)
    assert found.baseline == found.eval == [] and found.train


def test_after_the_target_no_round_is_due(finished_run: Path, cli: Cli) -> None:
    limit = ("--set", "gate.target_reverse_kl=1000.0")
    arguments = ("plan", "-c", finished_run / "run.toml", "--rounds", "4", *limit)
    assert cli.ok(*arguments, "--round", "2")["state"] == "stopped"
    assert cli.ok(*arguments, "--round", "3")["state"] == "waiting"
    assert "is stopped: round 1" in cli(*arguments, "--round", "2").stdout


def test_a_plan_of_other_settings_is_refused(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml", ["score.k=3"]))
    with pytest.raises(IdentityError, match="score.k"):
        round_tasks(run, 2, rounds=range(3), workers=1)


# --- where a configuration is ---


def test_a_configuration_can_be_in_a_store(moto_storage: Storage, cli: Cli) -> None:
    moto_storage.put("conf/run.toml", TEXT.encode())
    url = moto_storage.url("conf/run.toml")
    config = read_config(url, ["run.seed=5"])
    assert config.run.seed == 5
    assert config.resolve("prompts.jsonl") == moto_storage.url("conf/prompts.jsonl")
    assert config.resolve("../data") == moto_storage.url("data")
    assert config.resolve("/models/x") == "/models/x"
    assert json.loads(cli("config", "show", "-c", url).stdout)["run"]["name"] == "demo"


def test_a_model_beside_such_a_configuration_is_refused(moto_storage: Storage) -> None:
    moto_storage.put("run.toml", TEXT.encode())
    config = read_config(moto_storage.url("run.toml"))
    with pytest.raises(ConfigError, match="models are not read from a store: give the full path"):
        find_model(config, config.student, "student")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://nowhere/run.toml", "no configuration at memory://nowhere/run.toml"),
        ("http://host/run.toml", "give a path, file://… or s3://bucket/key"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_an_error(location: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(location)


def test_a_configuration_that_is_not_text_is_an_error(moto_storage: Storage) -> None:
    moto_storage.put("run.toml", b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        read_config(moto_storage.url("run.toml"))


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TEXT)
    config = read_config(f"file://{tmp_path}/run.toml")
    assert config.resolve("student") == str(tmp_path / "student")
    assert parse().resolve("student") == "/base/student"


def test_json_goes_to_the_file_that_a_scheduler_names(
    finished_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_JSON_FILE", str(tmp_path / "return.json"))
    said = cli.ok("gate", "-c", finished_run / "run.toml", "--round", "0")
    assert json.loads((tmp_path / "return.json").read_text()) == said
    assert cli("gate", "-c", finished_run / "run.toml", "--round", "9", "--json").code == 2
    assert json.loads((tmp_path / "return.json").read_text())["exit_code"] == 2


def test_status_of_one_round_has_its_figures_in_the_object(finished_run: Path, cli: Cli) -> None:
    said = cli.ok("status", "-c", finished_run / "run.toml", "--round", "1")
    assert [one["round"] for one in said["rounds"]] == [1]
    assert said["reverse_kl"] == said["rounds"][0]["reverse_kl"] > 0
