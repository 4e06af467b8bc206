"""Two rounds on three workers through `dag.test`, and what `opd run` makes of the same TOML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.conftest import UseS3
from tests.support.airflowhost import AirflowRuns
from tests.support.runs import Cli, snapshot
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run

WORKERS = 3
ROUND = {"plan", "teachers", "train", "eval", "gate"}

pytestmark = pytest.mark.slow


def rootless(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run published without what two runs of different roots may differ in."""
    return {key: value for key, value in found.items() if not key.endswith("run.json")}


def run_both(
    tmp_path: Path, cli: Cli, airflow: AirflowRuns, *, root: Callable[[str], str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the answer of Airflow, and what it and `opd run` published."""
    config = write_run(tmp_path / "run", root=root("airflow"))
    answers, printed = airflow.ask(
        {"dag": "opd_rounds", "conf": {"config": str(config), "workers": WORKERS}}
    )
    assert answers[0]["state"] == "success", printed[-6000:]
    other = write_run(tmp_path / "run", root=root("alone"), file="alone.toml")
    cli.ok("run", "-c", other)
    made, expected = (
        rootless(snapshot(open_run(load_config(path)).storage, "runs/tiny"))
        for path in (config, other)
    )
    return answers[0], made, expected


def check(answer: dict[str, Any], made: dict[str, Any], expected: dict[str, Any]) -> None:
    tasks = answer["tasks"]
    assert set(tasks.values()) == {"success"}
    for index in (0, 1):
        group = {name for name in tasks if name.startswith(f"round_{index}.")}
        mapped = {f"{s}[{w}]" for s in ("rollout", "score") for w in range(WORKERS)}
        single = {f"{s}[-1]" for s in ROUND} | ({"baseline[-1]"} if index == 0 else set())
        assert group == {f"round_{index}.{name}" for name in mapped | single}
    assert made == expected and len(made) > 30


def test_airflow_publishes_what_opd_run_does(
    tmp_path: Path, cli: Cli, airflow: AirflowRuns
) -> None:
    check(*run_both(tmp_path, cli, airflow, root=lambda name: str(tmp_path / name)))


@pytest.mark.s3
def test_airflow_publishes_the_same_on_s3(
    tmp_path: Path, cli: Cli, airflow: AirflowRuns, s3_server: SeaweedServer, use_s3: UseS3
) -> None:
    url = use_s3(s3_server.account)
    check(*run_both(tmp_path, cli, airflow, root=lambda name: f"{url}/{name}"))
