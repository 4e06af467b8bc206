"""Faults planted in real small runs: each is named by an alarm, or ended by opd itself in words."""

from pathlib import Path

import pytest

from benchmarks.faults.chat import ChatTask, Size
from benchmarks.faults.planted import FAULTS, Chat, Fault, run_chat
from tests.support.runs import Cli


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    """Return a chat task whose answers have 8 letters, and its models."""
    folder = tmp_path_factory.mktemp("chat")
    made = Chat(folder, ChatTask(0, 8.0, 20), new_tokens=24, prompts=64)
    return made.prepare(
        Size(hidden=32, layers=1, steps=120, batch=24, learning_rate=6e-3), early=40
    )


def test_a_healthy_run_raises_none(chat: Chat, tmp_path: Path) -> None:
    found = run_chat(chat, tmp_path / "run", rounds=2)
    assert (found.alarms, found.error) == ([], None)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_fault_is_named(chat: Chat, tmp_path: Path, fault: Fault, cli: Cli) -> None:
    found = run_chat(chat, tmp_path / "run", rounds=fault.rounds, fault=fault)
    assert found.names(fault), (found.alarms, found.error)
    assert {one.name for one in found.alarms} <= set(fault.alarms)
    assert (found.error is None) == (not fault.refused)
    if found.error is not None and fault.alarms:  # what ends the run is told with its cause
        ended = cli("run", "-c", tmp_path / "run" / "run.toml", "--json")
        assert ended.code == found.error.exit_code
        assert [one["name"] for one in ended.result["alarms"]] == list(fault.alarms)
        assert f"wrong: {found.alarms[0].sentence}" in ended.stderr
