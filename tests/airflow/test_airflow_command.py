"""Calls of `opd` from Airflow's side, without Airflow: arguments, processes, results, settings."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from opd_command import Call, CommandProcess, Outcome, brief, find_opd
from opd_settings import KINDS, Settings, load_settings, parse_settings
from tests.support.runs import Cli

# --- arguments ---


def test_a_call_becomes_a_command_line() -> None:
    call = Call(
        ("score",),
        {"round": 0, "set": ["run.name={branch}", "a.b=1"], "only-invalid": True, "sample": None},
        {"config": "config", "set": "overrides", "dry-run": "dry_run", "codec": "codec"},
    )
    params = {"config": "/c d.toml", "overrides": ["x.y=2"], "dry_run": False, "branch": "b"}
    assert call.command_line(params, {"teacher": "main", "worker": 3}) == [
        *("score", "--round", "0", "--set", "run.name=b", "--set", "a.b=1", "--only-invalid"),
        *("--config", "/c d.toml", "--set", "x.y=2", "--teacher", "main", "--json"),
    ]


def test_the_number_zero_is_a_value_and_no_text_is_none() -> None:
    call = Call(("cache", "gc"), {}, {"older-than": "hours", "codec": "codec"})
    assert call.command_line({"hours": 0.0, "codec": ""}, {}) == [
        *("cache", "gc", "--older-than", "0.0", "--json")
    ]


def test_every_call_of_the_dags_is_a_command_with_its_options(cli: Cli) -> None:
    calls = [
        Call(("plan",), {"round": 0, "rounds": 1, "from-round": 0, "workers": 2, "teacher": ["a"]}),
        Call(("plan",), {"dry-run": True, "config": "x", "set": ["a.b=1"]}),
        *(Call((name,), {"round": 0, "config": "x"}) for name in ("rollout", "score", "train")),
        *(Call((name,), {"round": 0, "config": "x"}) for name in ("eval", "gate", "status")),
        Call(("eval",), {"baseline": True, "config": "x"}),
        Call(("score",), {"round": 0, "teacher": "a", "only-invalid": True}),
        Call(("cache", "verify"), {"sample": 3, "config": "x"}),
        Call(("cache", "stats"), {"config": "x"}),
        Call(("cache", "gc"), {"older-than": 1.0, "delete": True}),
        Call(("cache", "reprocess"), {"from": ["a", "b"], "to": "c", "weight": [1.0, 2.0]}),
        Call(("cache", "reprocess"), {"k": 3, "top-p": 0.5, "min-k": 1, "codec": "packed-v1"}),
        Call(("cache", "reprocess"), {"one-tail": True, "drop-candidates": True}),
        Call(("cache", "reprocess"), {"drop-draws": True, "drop-sample": True}),
    ]
    for call in calls:
        text = cli(*call.command, "--help").stdout
        line = call.command_line({}, {})
        assert [word for word in line if word.startswith("--") and word not in text] == []


# --- results ---


def test_xcom_gets_names_and_counts_and_the_lists_of_a_plan_alone() -> None:
    result = {
        "stage": "score",
        "rows": 3,
        "manifest": None,
        "parts": [1, 2],
        "noise": {"mean": 0.1},
    }
    assert brief(result) == {"stage": "score", "rows": 3, "manifest": None}
    plan = {"stage": "plan", "score": [{"worker": 0}], "seconds": {"train": 1.0}}
    assert brief(plan) == {"stage": "plan", "score": [{"worker": 0}]}
    long = {"stage": "plan", "rollout": [{"worker": i} for i in range(1000)]}
    assert brief(long) == {"stage": "plan"}


@pytest.mark.parametrize(
    ("code", "repeated"),
    [(1, False), (2, False), (3, False), (4, False), (5, False), (6, True), (7, True), (8, False)]
    + [(130, True), (137, True), (143, True), (-9, True), (-15, True), (-11, True)],
)
def test_storage_capacity_and_interruptions_are_tried_again(code: int, repeated: bool) -> None:
    assert Outcome(code, {}).may_be_repeated is repeated


def test_an_end_is_told_in_words() -> None:
    assert Outcome(-9, {}).in_words() == "opd was killed by SIGKILL"
    told = Outcome(2, {"error": "no such file"}).in_words()
    assert told == "opd ended with exit code 2: no such file"


# --- processes ---


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\n{body}"]


def test_what_a_process_prints_is_logged_and_its_last_line_is_the_result() -> None:
    lines: list[str] = []
    body = "print('hello'); print('{\"rows\": 3}'); print('an event', file=sys.stderr)"
    outcome = CommandProcess(script(body), {}).wait(lines.append)
    assert outcome == Outcome(0, {"rows": 3})
    assert sorted(lines) == ["an event", "hello", '{"rows": 3}']


@pytest.mark.parametrize("printed", ["", "words", "[1, 2]", "{broken"])
def test_without_a_json_object_the_result_is_empty(printed: str) -> None:
    found = CommandProcess(script(f"print({printed!r}); sys.exit(4)"), {}).wait(lambda line: None)
    assert found == Outcome(4, {})


def test_much_output_on_both_streams_blocks_nothing() -> None:
    body = "\nfor i in range(20000):\n  print('x' * 50); print('y' * 50, file=sys.stderr)"
    lines: list[str] = []
    assert CommandProcess(script(body), {}).wait(lines.append).code == 0
    assert len(lines) == 40000


def test_variables_of_the_settings_reach_the_process() -> None:
    body = "import json; print(json.dumps({'a': os.environ['A'], 'b': os.environ['PATH']}))"
    found = CommandProcess(script(body), {"A": "x"}).wait(lambda line: None)
    assert found.result == {"a": "x", "b": os.environ["PATH"]}


def test_a_killed_process_has_its_signal_as_code() -> None:
    found = CommandProcess(script("os.kill(os.getpid(), 9)"), {}).wait(lambda line: None)
    assert found.code == -signal.SIGKILL and found.may_be_repeated


def test_a_killed_process_is_not_waited_for_where_it_left_others_behind() -> None:
    lines: list[str] = []
    body = "print('{}', flush=True)\nif os.fork(): os.kill(os.getpid(), 9)\ntime.sleep(600)"
    process = CommandProcess(script(body), {})
    assert process.wait(lines.append).code == -signal.SIGKILL and lines == ["{}"]


@pytest.mark.parametrize(
    ("body", "patience_s", "code"),
    [
        ("signal.signal(15, lambda *a: sys.exit(130))", 30.0, 130),
        ("signal.signal(15, signal.SIG_IGN); os.fork()", 0.2, -signal.SIGKILL),
    ],
)
def test_stop_asks_first_and_then_kills_the_whole_group(
    body: str, patience_s: float, code: int
) -> None:
    up = threading.Event()
    process = CommandProcess(script(f"{body}; print('up', flush=True); time.sleep(60)"), {})
    ended: list[Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(process.wait(lambda line: up.set())))
    thread.start()
    assert up.wait(120)
    process.stop(patience_s)
    thread.join(120)  # it reads until all of the group have closed their end
    assert [one.code for one in ended] == [code]


OWNER = """
import sys, time
sys.path.insert(0, "airflow_dags")
from opd_command import CommandProcess
work = "import cli.main, os, time; cli.main.app = lambda **k: (print(os.getpid(), flush=True), "
process = CommandProcess([sys.executable, "-c", work + "time.sleep(60)); cli.main.main([])"], {})
process.wait(lambda line: print(line, flush=True))
"""


def test_a_command_ends_in_order_when_its_scheduler_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    command = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    command.wait(120)


# --- where opd is ---


def test_a_missing_opd_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="OPD_BIN is not set on this worker"):
        find_opd({})
    with pytest.raises(FileNotFoundError, match="/nowhere/opd is no program on this worker"):
        find_opd({"OPD_BIN": "/nowhere/opd"})
    assert find_opd({"OPD_BIN": f"{sys.executable} -m cli.main"}) == [
        *(sys.executable, "-m", "cli.main")
    ]


# --- settings ---

FULL = """
backend = "kubernetes"
rounds = 3
notify = ["tell", "--loud"]
retry_delay_s = 5
[kinds.score]
pool = "h100"
timeout_h = 1.5
gpus = 4
node_selector = { gpu = "h100" }
tolerations = [{ key = "a", operator = "Exists" }]
[kubernetes]
image = "opd:1"
secrets = ["s3"]
in_cluster = true
[[kubernetes.volumes]]
claim = "models"
mount = "/models"
read_only = true
"""


def test_settings_are_read() -> None:
    found = parse_settings(FULL, where="a.toml")
    assert (found.rounds, found.notify, found.retry_delay_s) == (3, ("tell", "--loud"), 5)
    assert found.kind("score").gpus == 4 and found.kind("train").gpus == 0
    assert found.kubernetes.volumes[0].mount == "/models" and found.kubernetes.in_cluster is True
    assert parse_settings("", where="a.toml") == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("round = 3", "a.toml: round: unknown key; did you mean 'rounds'"),
        ("rounds = 0", "a.toml: rounds = 0 is below 1"),
        ("rounds = '3'", "rounds = '3' is not of type int"),
        ("rounds = true", "rounds = True is not of type int"),
        ("retry_delay_s = 'soon'", "retry_delay_s = 'soon' is not of type float"),
        ("notify = 'tell'", "notify = 'tell' is not of type tuple"),
        ("backend = 'slurm'", "backend = 'slurm'; it can be 'local' or 'kubernetes'"),
        ("backend = 'kubernetes'", "needs kubernetes.image"),
        ("[kinds.scor]\ngpus = 1", "kinds.scor: unknown; did you mean 'score'"),
        ("[kinds.score]\ngpu = 1", "kinds.score: gpu: unknown key; did you mean 'gpus'"),
        ("[[kubernetes.volumes]]\nclaim = 'x'", "kubernetes.volumes: mount is missing"),
        ("[kubernetes]\nin_cluster = 'yes'", "in_cluster = 'yes' is not of type"),
        ("configs = '/data/'", "configs = '/data/' is not of type tuple"),
        ("configs = [1]", "configs is a list of texts"),
        ("overrides = ['']", "overrides is a list of texts"),
        ("override = ['a.b']", "did you mean 'overrides'"),
        ("a = ", "a.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_the_settings_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="a.toml") as caught:
        parse_settings(text, where="a.toml")
    assert words in str(caught.value)


def test_settings_that_are_not_there_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load_settings.cache_clear()
    monkeypatch.setenv("OPD_AIRFLOW_SETTINGS", "/nowhere/airflow.toml")
    with pytest.raises(ValueError, match="/nowhere/airflow.toml: No such file"):
        load_settings()
    monkeypatch.delenv("OPD_AIRFLOW_SETTINGS")
    assert load_settings() == Settings()
    load_settings.cache_clear()


def test_the_settings_of_the_documentation_are_valid() -> None:
    text = Path("docs/airflow.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    settings = [block for block in blocks if "backend" in block]
    assert len(settings) == 2
    for block in settings:
        assert set(parse_settings(block, where="docs").kinds) <= set(KINDS)


def test_the_json_of_a_real_command_is_its_result(finished_run: Path) -> None:
    line = [sys.executable, "-m", "cli.main", "gate", "-c", str(finished_run / "run.toml")]
    outcome = CommandProcess([*line, "--round", "1", "--json"], {}).wait(lambda text: None)
    assert outcome.code == 0 and outcome.result["decision"] == "go"
    wrong = CommandProcess([*line, "--round", "9", "--json"], {}).wait(lambda text: None)
    assert wrong.code == 2 and "not trained" in wrong.in_words()
    assert json.dumps(wrong.result)
