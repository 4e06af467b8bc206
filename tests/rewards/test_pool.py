"""Rewards of many responses: a fault costs its own row, and a process that fell is started anew."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.rewards.graders import Response
from pipeline.rewards.location import find_grader
from pipeline.rewards.pool import Verdict, open_judge
from pipeline.store import interrupts
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import RewardSection
from schemas.errors import ConfigError

Judged = Callable[..., list[Verdict]]
GRADE = "def grade(response, reference, metadata):\n"


def responses(*rows: tuple[str, str | None]) -> list[Response]:
    return [Response(f"p{i}", text, reference, None) for i, (text, reference) in enumerate(rows)]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Return a grader of a file's text, and what it says of responses."""

    def call(body: str, rows: list[tuple[str, str | None]], **settings: object) -> list[Verdict]:
        (tmp_path / "grader.py").write_text(body)
        section = RewardSection.model_validate({"grader": "grader.py:grade", **settings})
        with open_judge(find_grader(section, ConfigPlace(str(tmp_path))), section) as judge:
            return judge(responses(*rows))

    return call


def pairs(found: list[Verdict]) -> list[tuple[float | None, str | None]]:
    return [(one.reward, one.fault) for one in found]


def test_rewards_come_in_order_from_as_many_processes_as_there_may_be(judged: Judged) -> None:
    body = "import os, time\n" + GRADE + "    time.sleep(0.001)\n    return float(response)\n"
    rows = [(str(i), None) for i in range(200)]
    assert [one.reward for one in judged(body, rows, processes=3)] == list(range(200))


def test_a_row_that_only_a_worn_process_fails_on_is_asked_once_more(judged: Judged) -> None:
    body = "import os\nseen = []\n" + GRADE + "    seen.append(1)\n"
    body += "    if response == 'bad' or len(seen) > 2: os._exit(1)\n    return len(seen)\n"
    rows = [(text, None) for text in ("a", "b", "c", "bad", "d", "bad", "bad", "e")]
    found = judged(body, rows, processes=1)
    good = [(1.0, None), (2.0, None)]
    fell = (None, "died")
    assert pairs(found) == [*good, good[0], fell, good[0], fell, fell, good[0]]


def test_memory_has_a_bound_and_the_next_row_has_all_of_it_again(judged: Judged) -> None:
    body = "kept = []\n" + GRADE + "    kept.append(bytearray(int(response) << 20))\n    return 1\n"
    rows = [(size, None) for size in ("100", "100", "100", "100", "4096", "100")]
    found = judged(body, rows, processes=1, memory_gb=0.375)
    assert pairs(found) == [*[(1.0, None)] * 4, (None, "memory"), (1.0, None)]
    assert "ran out of memory" in (found[4].words or "")


def test_what_a_grader_printed_is_told_and_not_kept(judged: Judged) -> None:
    (one,) = judged(
        GRADE + "    print('of row', response, flush=True)\n    return None\n", [("7", None)]
    )
    assert "of row 7" in (one.told or "") and "of row" not in (one.words or "")


@pytest.mark.parametrize(
    ("grader", "pattern"), [("exact_match", None), ("last_number", None), ("regex", "[0-9]+")]
)
def test_prompts_without_a_reference_have_no_reward_and_the_others_have(
    grader: str, pattern: str | None, judged: Judged
) -> None:
    rows = [("4", "4"), ("4", None), ("5", "4")]
    found = judged("", rows, grader=grader, pattern=pattern)
    assert pairs(found) == [(1.0, None), (None, "no_reference"), (0.0, None)]


def test_a_reference_without_a_number_is_no_reference(judged: Judged) -> None:
    (found,) = judged("", [("4", "four")], grader="last_number")
    assert (found.fault, found.words) == ("no_reference", "the reference holds no number ('four')")


def test_a_pattern_that_takes_for_ever_costs_its_row(judged: Judged) -> None:
    rows = [("a", "a"), ("a" * 60 + "!", "a"), ("b", "a")]
    found = judged("", rows, grader="regex", pattern="^(a|a)*$", timeout_s=0.5)
    assert pairs(found) == [(1.0, None), (None, "timed_out"), (0.0, None)]


def test_a_grader_that_cannot_be_loaded_is_the_users_mistake(judged: Judged) -> None:
    with pytest.raises(ConfigError, match=r"reward.grader = .* cannot be loaded: it raised Mod"):
        judged("import no_such_module\n" + GRADE + "    return 1\n", [("a", None)] * 9)


def test_an_interruption_ends_graders_that_hang(judged: Judged, tmp_path: Path) -> None:
    body = "import time\n" + GRADE + f"    open({str(tmp_path / 'on')!r}, 'w')\n"
    body += "    time.sleep(600)\n"

    def ask() -> None:
        while not (tmp_path / "on").exists():
            pass
        interrupts.ask()

    threading.Thread(target=ask).start()
    try:
        with pytest.raises(interrupts.Interrupted):
            judged(body, [("a", None)] * 9, timeout_s=600)
    finally:
        interrupts.forget()
