"""`opd init`: a run of few lines from two models, which passes the doctor."""

import io
import json
import shutil
from pathlib import Path

import pytest

from cli.setup.init import QUESTIONS, _answers
from pipeline.setup.models import UNKNOWN_COMMIT
from pipeline.setup.text import settings_in
from schemas.config.file import parse_config
from tests.support.promptfiles import write_lines, write_parquet
from tests.support.runs import Cli
from tests.support.tiny import make_model

MODELS = ("--student", "student", "--teacher", "teacher")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "student", tokenizer="chat")
    make_model(folder / "teacher", tokenizer="chat", teacher=True)
    make_model(folder / "text")
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder that has the models."""
    for name in ("student", "teacher", "text"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_models_are_enough_for_a_run_that_the_doctor_lets_pass(home: Path, cli: Cli) -> None:
    result = cli.ok("init", *MODELS, "--grader", "last_number")
    assert result["config"] == "run.toml" and result["next"] == "opd try -c run.toml"
    text = (home / "run.toml").read_text()
    assert settings_in(text) <= 15
    config = parse_config(text, where="run.toml")
    assert config.student.model == "student" and config.run.root == "opd-data"
    first = json.loads((home / "prompts.jsonl").read_text().splitlines()[0])
    assert first["messages"][0]["role"] == "user", "the tokenizer has a chat template"
    assert len((home / "held-out.jsonl").read_text().splitlines()) == 3
    found = cli.ok("doctor", "-c", "run.toml")["findings"]
    assert {one["name"]: one["state"] for one in found if one["state"] != "ok"} == {}
    shown = json.loads(cli("config", "show", "-c", "run.toml").stdout)
    assert shown["base"]["name"] == "opd:cpu@1"
    assert "train.warmup_steps" in shown["base"]["keys"]
    assert "rollout.max_new_tokens" not in shown["base"]["keys"]


def test_nothing_that_exists_is_overwritten(home: Path, cli: Cli) -> None:
    (home / "prompts.jsonl").write_text('{"prompt": "mine"}\n')
    cli.ok("init", *MODELS)
    assert (home / "prompts.jsonl").read_text() == '{"prompt": "mine"}\n'
    before = (home / "run.toml").read_text()
    outcome = cli("init", *MODELS)
    assert outcome.code == 5 and "run.toml exists" in outcome.stderr
    assert (home / "run.toml").read_text() == before


def test_the_task_brings_its_prompts_and_stops_where_there_are_some(home: Path, cli: Cli) -> None:
    task = ("--prompts", "addition", "--grader", "last_number")
    cli.ok("init", "--student", "text", "--teacher", "text", *task)
    rows = [json.loads(line) for line in (home / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) > 1000 and set(rows[0]) == {"prompt", "reference"}
    again = cli("init", "--student", "text", "--teacher", "text", *task, "--out", "b.toml")
    assert again.code == 5 and "prompts.jsonl exists" in again.stderr
    assert not (home / "b.toml").exists()


def test_paths_of_options_start_from_the_working_folder(home: Path, cli: Cli) -> None:
    (home / "own").mkdir()
    (home / "own" / "p.jsonl").write_text("".join(f'{{"prompt": "{i}+2="}}\n' for i in range(30)))
    models = ("--student", "text", "--teacher", "text")
    cli.ok("init", *models, "--prompts", "own/p.jsonl", "--out", "own/run.toml", "--root", "data")
    config = parse_config((home / "own" / "run.toml").read_text(), where="run.toml")
    assert config.prompts.train == "p.jsonl" and config.run.root == "../data"
    assert config.student.model == "../text"
    assert cli("config", "validate", "-c", "own/run.toml").code == 0


def test_prompts_that_cannot_be_used_are_left_out_in_words(home: Path, cli: Cli) -> None:
    (home / "p.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+1="}\n{"x": 1}\n')
    cli.ok("init", "--student", "text", "--teacher", "text", "--prompts", "p.jsonl")
    text = (home / "run.toml").read_text()
    assert "left out and counted: 1 duplicate, 1 no_prompt" in text
    assert parse_config(text, where="run.toml").prompts.on_error == "skip"


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_columns_of_other_names_are_mapped(home: Path, cli: Cli, name: str) -> None:
    rows = [{"question": f"{i}+1=", "answer": f"{i + 1}", "topic": "sums"} for i in range(20)]
    if name.endswith(".parquet"):
        write_parquet(home / name, rows)
    else:
        write_lines(home / name, rows)
    models = ("--student", "text", "--teacher", "text")
    cli.ok("init", *models, "--prompts", name, "--grader", "last_number", "--held-out", name)
    config = parse_config((home / "run.toml").read_text(), where="run.toml")
    assert config.prompts.columns == {"prompt": "question", "reference": "answer"}
    assert config.rollout.prompts_per_round == 20
    found = cli.ok("doctor", "-c", "run.toml")["findings"]
    assert {one["name"]: one["words"] for one in found if one["state"] != "ok"} == {}


def test_a_name_that_the_hub_is_not_asked_for_leaves_a_line_to_fill(home: Path, cli: Cli) -> None:
    result = cli.ok("init", "--student", "student", "--teacher", "nobody/no-such-model")
    assert any("the hub was not reached" in words for words in result["notes"])
    text = (home / "run.toml").read_text()
    assert "# REPLACE the revision by the commit hash of nobody/no-such-model" in text
    outcome = cli("config", "validate", "-c", "run.toml")
    assert outcome.code == 2 and "teachers.main.revision" in outcome.stderr
    assert UNKNOWN_COMMIT in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--student", "student"), 2, "give --teacher"),
        (("--student", "./nowhere", "--teacher", "teacher"), 2, "there is no such folder"),
        (("--student", "student", "--teacher", "text"), 3, "tokenizers"),
        ((*MODELS, "--prompts", "nowhere.jsonl"), 2, "nowhere.jsonl"),
        ((*MODELS, "--prompts", "prompts.docx"), 2, "expected a file that ends in"),
        ((*MODELS, "--prompts", "empty.jsonl"), 2, "it holds no records"),
        ((*MODELS, "--prompts", "bad.jsonl"), 2, "no prompt of"),
        ((*MODELS, "--prompts", "hf://datasets/no-one/nothing/p.parquet"), 6, "offline mode"),
        ((*MODELS, "--prompts", "good.jsonl", "--grader", "last_number"), 2, "--held-out"),
        ((*MODELS, "--grader", "no grader"), 2, "no grader"),
        ((*MODELS, "--base", "opd:gpu"), 2, "opd:cpu"),
        ((*MODELS, "--root", "ftp://x"), 2, "run.root"),
        ((*MODELS, "--out", "nowhere/run.toml"), 2, "there is no folder"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    arguments: tuple[str, ...], code: int, words: str, home: Path, cli: Cli
) -> None:
    (home / "empty.jsonl").write_text("")
    (home / "bad.jsonl").write_text('{"what": "x"}\n')
    (home / "good.jsonl").write_text('{"prompt": "x"}\n')
    before = sorted(path.name for path in home.iterdir())
    outcome = cli("init", *arguments)
    assert outcome.code == code, outcome.stderr
    assert words in outcome.stderr and "Traceback" not in outcome.stderr
    assert sorted(path.name for path in home.iterdir()) == before


def test_models_whose_special_tokens_alone_differ_are_told_apart_in_the_file(
    home: Path, made: Path, cli: Cli
) -> None:
    shutil.copytree(made / "teacher", home / "other")
    for name in ("tokenizer_config.json",):
        settings = json.loads((home / "other" / name).read_text())
        settings["pad_token"] = settings["eos_token"]
        (home / "other" / name).write_text(json.dumps(settings))
    cli.ok("init", "--student", "student", "--teacher", "other")
    config = parse_config((home / "run.toml").read_text(), where="run.toml")
    assert config.teachers["main"].tokenizer_check == "vocabulary"


def test_chats_that_end_with_an_answer_are_read_without_it(home: Path, cli: Cli) -> None:
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    write_lines(home / "p.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    notes = cli.ok("init", *MODELS, "--prompts", "p.jsonl")["notes"]
    assert any("1 end with an answer, which is left off" in words for words in notes)
    prompts = parse_config((home / "run.toml").read_text(), where="run.toml").prompts
    assert (prompts.answered, prompts.on_error) == ("drop", "skip"), "one is twice there now"


def test_what_is_left_out_is_told_as_the_toml_is_written(home: Path, cli: Cli) -> None:
    (home / "p.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+1="}\n')
    notes = cli.ok("init", *MODELS, "--prompts", "p.jsonl")["notes"]
    assert any("1 that can be used" in one and "left out: 1 duplicate" in one for one in notes)


def test_a_limit_of_prompts_holds_those_that_are_held_out_too(home: Path, cli: Cli) -> None:
    (home / "p.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "2+1="}\n')
    (home / "h.jsonl").write_text('{"prompt": "1+1+1+1+1+1+1+1+1+1+1+1=", "reference": 12}\n')
    graded = ("--prompts", "p.jsonl", "--grader", "last_number", "--held-out", "h.jsonl")
    cli.ok("init", "--student", "text", "--teacher", "text", *graded)
    assert cli.ok("doctor", "-c", "run.toml")["findings"]


@pytest.mark.parametrize(
    ("typed", "held_out"),
    [
        ("s\nt\np.jsonl\nlast_number\nh.jsonl\n", "h.jsonl"),
        ("s\nt\np.jsonl\n\n", None),
        ("s\nt\naddition\nlast_number\n", None),
    ],
)
def test_held_out_prompts_are_asked_for_where_a_grader_needs_them(
    typed: str, held_out: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    answers = _answers(dict.fromkeys(QUESTIONS), may_ask=True)
    assert answers["held_out"] == held_out and answers["student"] == "s"
