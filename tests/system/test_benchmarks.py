"""Benchmarks: each runs small and says what it promises; how fast anything is, is not asserted."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.__main__ import NAMES, main, table
from benchmarks.kit.machine import versions
from benchmarks.kit.measure import (
    Action,
    Case,
    Timing,
    alternate,
    cost_ratio,
    headline,
    in_child,
    peak_bytes,
    speed_ratio,
    spread,
)
from benchmarks.kit.shardflow import from_s3
from tests.support.repository import REPOSITORY
from tests.support.runs import finish, start_function
from tests.support.servers import S3Account, SeaweedServer
from tests.support.tinytables import make_scorer, rollout_table, score_rows

RESULTS = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
FIGURES = {
    "alarms": {"false_alarms", "healthy_runs", "faults_named", "faults_planted"},
    "cache": {
        f"{codec}_{figure}"
        for codec in ("typed", "packed")
        for figure in (
            "bytes_per_token",
            "kl_mean",
            "kl_max",
            "encode_tokens_per_cpu_s",
            "decode_tokens_per_cpu_s",
        )
    },
    "chaos": {"kills", "faults", "requests", "starts", "runs"},
    "engines": {"score_ratio", "rollout_ratio", "convert_share"},
    "fuzz": {"executions", "executions_per_s"},
    "index": {"open_s", "lookup_s", "lookup_memory_mb", "objects_read", "lookup_growth"},
    "learner": {
        *("step_ratio", "step_ratio_small", "critical_path_ratio", "waiting_path_ratio"),
        *("padding_share", "data_wait_share", "decode_cpu_ratio"),
    },
    "losses": {"floor_ratio", "floor_ratio_bf16", "naive_ratio", "peak_ratio"},
    "objectives": {
        *("objectives_that_reach", "objectives_measured", "fewest_seeds", "default_least"),
    },
    "peers": {"step_ratio", "accuracy_opd", "accuracy_trl", "peak_mb_opd", "peak_mb_trl"},
    "rollout": {"rollout_ratio"},
    "score": {"score_ratio", "convert_share"},
    "support": {"default_cosine"},
    "storage": {"publish_per_s", "read_per_s", "growth_ratio", "growth_ratio_wall"},
}
UNMEASURED = {"learner": FIGURES["learner"] - {"step_ratio"}}
"""Figures that came after the committed result; the next one that is measured has them."""

MAY_BE_NONE = {"false_alarms"}
"""Figures that are best at 0."""

APART = ("engines", "objectives", "peers")
"""Beside vLLM's tests, in their process; whose models learn nothing in seconds; in an environment
of its own, for minutes."""

RECORD = {"benchmark", "cases", "seconds", "cpu_seconds", "quick", "seed", "command", "machine"}


def check_record(
    record: dict[str, Any], name: str, unmeasured: frozenset[str] = frozenset()
) -> None:
    """Make sure that a record has what its benchmark promises, in positive numbers."""
    figures = FIGURES[name] - (unmeasured - set(record))
    assert record["benchmark"] == name
    nested = {"cache": {"codecs", "shards"}, "fuzz": {"targets", "failures"}}
    nested |= {"alarms": {"failures"}, "chaos": {"counts", "failures"}, "peers": {"cpu_s_per_step"}}
    nested |= {"support": {"default"}, "objectives": {"objectives"}}
    assert set(record) == RECORD | {"versions"} | figures | nested.get(name, set())
    assert not record.get("failures")
    assert all(record[figure] > 0 for figure in figures - MAY_BE_NONE)
    assert record["command"].startswith(f"python -m benchmarks {name}")
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["threads"] == 1
    assert {"python", "opd", "torch"} <= set(record["versions"])
    assert record["cases"]
    for case in record["cases"]:
        check_case(case)


def check_case(case: dict[str, Any]) -> None:
    assert isinstance(case["case"], str)
    spreads = [value for value in case.values() if isinstance(value, dict)]
    once = case["case"] == "reference" or "cosine" in case or "accuracy_opd" in case
    assert spreads or once  # a cosine is no time, and each seed of a peer is one run
    for value in spreads:
        assert set(value) == {"median", "min", "max"}
        assert 0 <= value["min"] <= value["median"] <= value["max"]
    numbers = [value for value in case.values() if isinstance(value, (int, float))]
    assert all(number > 0 for number in numbers)


def test_every_benchmark_is_listed() -> None:
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(NAMES)
    assert set(NAMES) == set(FIGURES)


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["speed"])
    assert end.value.code == 2
    assert "storage" in capsys.readouterr().err


def test_peers_say_how_their_environment_is_made_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers.PYTHON", tmp_path / ".venv-peers" / "bin" / "python")
    assert main(["peers", "--quick"]) == 2
    assert "make .venv-peers/.peers" in capsys.readouterr().err


@pytest.mark.slow
def test_every_benchmark_prints_its_figures_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    names = [name for name in NAMES if name not in APART]
    done = finish(start_function(main, [*names, "--quick", "--json"]))
    assert done.code == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [record["benchmark"] for record in records] == names
    for record in records:
        assert record["quick"]
        check_record(record, record["benchmark"])


def test_a_result_is_written_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    path = tmp_path / "storage.json"
    assert main(["storage", "--quick", "--json", "--out", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written == json.loads(capsys.readouterr().out.splitlines()[-1])
    check_record(written, "storage")
    assert str(tmp_path) not in path.read_text()


def test_a_result_is_printed_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["storage", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "growth_ratio" in shown
    assert " to " in shown


def test_a_figure_that_a_case_lacks_is_shown_as_a_dash() -> None:
    cases = [{"case": "a", "old": 1, "new": 2.5}, {"case": "b", "old": 3}]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table({"benchmark": "losses", "seconds": 1.0, "cases": cases}))
    rows = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["old", "1", "3"] in rows
    assert ["new", "2.5", "–"] in rows


def test_storage_is_measured_on_s3_where_the_environment_names_a_server(
    moto_server: S3Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto_server.environ().items():
        monkeypatch.setenv(name, value)
    assert main(["storage", "--quick", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    check_record(record, "storage")
    assert record["cases"][0]["case"] == "s3"
    client = moto_server.client()
    assert client.ls("opd-benchmarks") == []


@pytest.mark.s3
def test_the_cache_is_read_from_s3_where_the_environment_names_a_server(
    s3_server: SeaweedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environ().items():
        monkeypatch.setenv(name, value)
    assert main(["cache", "--quick", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    check_record(record, "cache")
    for codec in ("typed-v1", "packed-v1"):
        figures = record["shards"][codec]
        assert figures["s3_tokens_per_cpu_s"] > 0
        assert figures["s3_tokens_per_wall_s"] > 0
        assert {"writer_growth_mb", "reader_growth_mb"} < set(figures)
    assert s3_server.account.client().find("opd-benchmarks") == []


def test_what_is_not_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    found = from_s3(make_scorer(), score_rows(rollout_table(2)), repeats=1)
    assert found == {"s3": "not measured: AWS_ENDPOINT_URL names no server"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.stem))
def test_a_committed_result_is_a_whole_run(path: Path) -> None:
    record = json.loads(path.read_text())
    name = path.stem.split("-")[0]
    check_record(record, name, frozenset(UNMEASURED.get(name, ())))
    assert not record["quick"]
    assert "/" not in record["command"].replace("benchmarks/results/", "")


# --- measuring ---


def test_sides_take_turns_and_the_first_one_changes() -> None:
    calls: list[str] = []

    def side(name: str, units: int) -> int:
        calls.append(name)
        return units

    sides: dict[str, Action] = {"a": partial(side, "a", 1), "b": partial(side, "b", 2)}
    timings = alternate(sides, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [t.units for t in timings["a"]] == [1, 1, 1]
    assert [t.units for t in timings["b"]] == [2, 2, 2]


def test_ratios_are_taken_round_by_round() -> None:
    ours = [Timing(10, cpu_s=1.0, wall_s=9.0), Timing(10, cpu_s=4.0, wall_s=9.0)]
    other = [Timing(20, cpu_s=1.0, wall_s=9.0), Timing(20, cpu_s=4.0, wall_s=9.0)]
    assert cost_ratio(ours, other) == spread([2.0, 2.0])
    assert speed_ratio(ours, other) == spread([0.5, 0.5])


def test_a_spread_has_median_and_ends() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.min, found.max) == (2.0, 1.0, 3.0)


def test_a_headline_is_picked_from_all_cases() -> None:
    cases: list[Case] = [{"case": "a", "ratio": spread([1.0, 3.0])}, {"case": "b", "ratio": 1.5}]
    assert headline(cases, "ratio", max) == 2.0
    assert headline(cases, "ratio", min) == 1.5


def test_a_child_measures_memory_of_its_own() -> None:
    ballast = bytearray(256 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    assert peak_bytes() > len(ballast)
    assert in_child("benchmarks.kit.measure", peak_bytes) < len(ballast)


def test_versions_name_no_place() -> None:
    assert not any("/" in version for version in versions().values())
