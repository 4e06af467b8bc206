"""A command as a grader: what it reads and answers, and that a bad answer costs its row alone."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.rewards.graders import Response, open_grader
from pipeline.rewards.location import find_grader
from pipeline.rewards.pool import Verdict, open_judge
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import EvalSection, RewardSection
from schemas.errors import ConfigError

Judged = Callable[..., list[Verdict]]
LOOP = """#!{python}
import json, os, sys, time
{start}
def put(reward, **more):
    print(json.dumps({{"id": row["id"], "reward": reward, **more}}), flush=True)
for line in sys.stdin:
    row = json.loads(line)
    text = row["response"]
{body}
"""


def write(folder: Path, body: str, start: str = "") -> None:
    path = folder / "grade.sh"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(LOOP.format(python=sys.executable, start=start, body=lines))
    path.chmod(0o755)


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Return a command whose loop has a body, and what it says of responses."""

    def call(body: str, *texts: str, start: str = "", **settings: object) -> list[Verdict]:
        write(tmp_path, body, start)
        given = {"grader": "command", "command": ["./grade.sh"], "processes": 1, **settings}
        section = RewardSection.model_validate(given)
        with open_judge(find_grader(section, ConfigPlace(str(tmp_path))), section) as judge:
            return judge([Response("p", t, f"ref {t}", '{"a": [1]}') for t in texts])

    return call


def test_a_command_reads_a_line_for_each_response_and_answers_with_one(judged: Judged) -> None:
    body = "assert row['reference'] == 'ref ' + text and row['metadata'] == {'a': [1]}\n"
    texts = ["1", "2.5", "-3e5", "7\n8", "\u2028", "$(touch x)`id`'; rm -rf ~"]
    found = judged(body + "put(len(text))", *texts, processes=2)
    assert [one.reward for one in found] == [len(text) for text in texts]


BAD = {
    "print('no json', flush=True)": ("died", "no json"),
    "print(json.dumps({'id': row['id']}), flush=True)": ("died", "no reward"),
    "put(1.0, id=row['id'] + 1)": ("died", "asked was id"),
    "print('{\"id\": ' + '[' * 9999, flush=True)": ("died", "expected a JSON object"),
    "put('x' * (1 << 20))": ("died", "more than 65536 bytes"),
    "sys.exit(3)": ("died", "exit status 3"),
    "os.close(1); time.sleep(60)": ("died", "closed its output"),
    "os.fork() or os.setpgid(0, 0); time.sleep(60)": ("timed_out", "no answer in 1 s"),
    "put(float('nan'))": ("no_number", "finite"),
    "put(10 ** 400)": ("no_number", "finite"),
    "put(None)": ("no_number", "expected a number"),
    "put(0, error='the judge is away')": ("raised", "the judge is away"),
    "put(bytearray(1 << 33) and 1)": ("died", "exit status 1"),
}


def test_a_bad_answer_costs_its_row_and_no_other(judged: Judged) -> None:
    cases = "".join(f"elif text == '{n}':\n    {code}\n" for n, code in enumerate(BAD))
    body = f"if text.startswith('good'): put(0.5)\n{cases}"
    bad = [str(n) for n in range(len(BAD))]
    found = judged(body, "good", *bad, "good", timeout_s=1.0, memory_gb=1.0)
    assert [one.reward for one in found] == [0.5, *[None] * len(bad), 0.5]
    for one, (kind, words) in zip(found[1:-1], BAD.values(), strict=True):
        assert one.fault == kind and words in (one.words or ""), (one, kind, words)


def test_an_answer_too_many_is_never_taken_for_that_of_another_row(judged: Judged) -> None:
    body = "put(float(text))\nif text == '1': put(9.0); time.sleep(0.1)"
    found = judged(body, "0", "1", "2", "3")
    assert [one.reward for one in found] == [0.0, 1.0, 2.0, 3.0]


def test_the_time_that_a_command_starts_in_is_no_rows(judged: Judged) -> None:
    start = "import time\ntime.sleep(1.5)\n"
    found = judged("put(1)", "a", "b", timeout_s=1.0, start=start)
    assert [one.reward for one in found] == [1.0, 1.0]


def test_what_a_command_has_started_ends_with_it(judged: Judged, tmp_path: Path) -> None:
    body = f"if not os.fork(): time.sleep(600)\nopen({str(tmp_path / 'pids')!r}, 'a')"
    body += ".write(f'{os.getpid()} {os.getpgid(0)}\\n')\nput(1)"
    assert [one.reward for one in judged(body, "a", "b")] == [1.0, 1.0]
    groups = {int(line.split()[1]) for line in (tmp_path / "pids").read_text().splitlines()}

    def living() -> list[int]:
        return [p.pid for p in psutil.process_iter() if _group(p.pid) in groups and _lives(p)]

    end = time.monotonic() + 10
    while living():
        assert time.monotonic() < end, living()
        time.sleep(0.02)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_an_evaluation_is_graded_by_a_command_too(tmp_path: Path) -> None:
    write(tmp_path, "put(text in row['reference'])")
    section = EvalSection(reward="command", command=("./grade.sh", "--strict"))
    grader = find_grader(section, ConfigPlace(str(tmp_path)))
    with open_grader(grader, timeout_s=20.0) as grade:
        assert grade([Response("p", "a", "cat", None), Response("q", "b", "cat", None)]) == [1, 0]
    write(tmp_path, "sys.exit(4)")
    changed = find_grader(section, ConfigPlace(str(tmp_path)))
    assert changed.identity != grader.identity, "what is in the file is part of what grades"
    with (
        pytest.raises(ConfigError, match="exit status 4"),
        open_grader(changed, timeout_s=20.0) as grade,
    ):
        grade([Response("p", "a", "cat", None)])


def test_further_files_of_a_command_lie_beside_the_configuration_too(tmp_path: Path) -> None:
    write(tmp_path, "put(1)")
    (tmp_path / "key.json").write_text("{}")
    section = RewardSection(grader="command", command=("./grade.sh", "--key", "./key.json"))
    grader = find_grader(section, ConfigPlace(str(tmp_path)))
    paths = [str(tmp_path / name) for name in ("grade.sh", "key.json")]
    assert grader.start["command"] == [paths[0], "--key", paths[1]]
    assert len(grader.identity) == 5
