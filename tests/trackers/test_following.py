"""Trackers that are told while stages run: they are served, and one that is ill stops nothing."""

import sys
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.trackers.following import following
from tests.support.runs import Cli
from tests.support.trackers import tracker_python, variables


def follow(config: Path, *settings: str) -> list[str]:
    """Tell trackers once, as a command does whose round is stored; return what it is told."""
    told: list[str] = []
    run = open_run(load_config(config, settings))
    arguments = ["-c", str(config), *(word for item in settings for word in ("--set", item))]
    with following(run, arguments, told.append) as tell:
        tell()
    return told


def with_tensorboard(folder: Path, *lines: str) -> Path:
    config = folder / "run.toml"
    table = ["[track]", *lines, "[track.tensorboard]", 'folder = "seen"']
    config.write_text(config.read_text() + "\n" + "\n".join(table) + "\n")
    return config


def program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f'python = "{path}"'


def test_what_is_stored_is_sent_before_the_command_ends(
    run_copy: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_tensorboard(run_copy, f'python = "{tracker_python()}"', "report = false")
    monkeypatch.setenv("PYTHONPATH", variables()["PYTHONPATH"])
    outcome = cli("train", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0 and "tracker" not in outcome.stderr
    (folder,) = (run_copy / "seen").iterdir()
    parts = sorted(path.name.partition(".opd.")[2] for path in folder.iterdir())
    assert parts == ["0000", "0000-eval", "0001", "0001-eval", "settings"]


def test_one_that_hangs_is_given_up_and_one_that_dies_is_told(run_copy: Path) -> None:
    hangs = with_tensorboard(run_copy, "wait_s = 0.2", program(run_copy, "exec sleep 600"))
    (told,) = follow(hangs)
    assert "tracker tensorboard" in told and "0.2 s" in told and "opd track" in told
    program(run_copy, "exit 3")
    assert follow(hangs, "track.wait_s=60") == ["tracker tensorboard: its process ended with 3"]
    (run_copy / "python").unlink()
    assert ["cannot be started" in words for words in follow(hangs)] == [True]


def test_a_library_that_is_not_there_is_told_with_what_to_do(
    run_copy: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    outcome = cli("track", "-c", with_tensorboard(run_copy), "--json")
    assert outcome.code == 6 and "pip install 'opd[trackers]'" in outcome.stderr
    assert outcome.result["sent"] == {"tensorboard": 0}
