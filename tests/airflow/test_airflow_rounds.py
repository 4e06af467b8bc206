"""Two rounds on three workers through `dag.test`, and what `opd run` makes of the same TOML.

On S3 alone: in a folder, `test_airflow_live.py` compares the same two.
"""

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
ROUND = {"plan", "teachers", "grade", "train", "eval", "gate"}

pytestmark = pytest.mark.slow


def rootless(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run published without what two runs of different roots may differ in."""
    return {key: value for key, value in found.items() if not key.endswith("run.json")}


@pytest.mark.s3
def test_airflow_publishes_on_s3_what_opd_run_does(
    tmp_path: Path, cli: Cli, airflow: AirflowRuns, s3_server: SeaweedServer, use_s3: UseS3
) -> None:
    url = use_s3(s3_server.account)
    folder, rewards = tmp_path / "run", {"reward.grader": "exact_match"}
    config = write_run(folder, root=f"{url}/airflow", changes=rewards)
    answers, printed = airflow.ask(
        {"dag": "opd_rounds", "conf": {"config": str(config), "workers": WORKERS}}
    )
    assert answers[0]["state"] == "success", printed[-6000:]
    check_tasks(answers[0]["tasks"])
    other = write_run(folder, root=f"{url}/alone", file="alone.toml", changes=rewards)
    cli.ok("run", "-c", other)
    made, expected = (
        rootless(snapshot(open_run(load_config(path)).storage, "runs/tiny"))
        for path in (config, other)
    )
    assert made == expected and len(made) > 30


def check_tasks(tasks: dict[str, str]) -> None:
    """Hold the tasks of two rounds to what they should be."""
    assert set(tasks.values()) == {"success"}
    for index in (0, 1):
        group = {name for name in tasks if name.startswith(f"round_{index}.")}
        mapped = {f"{s}[{w}]" for s in ("rollout", "score") for w in range(WORKERS)}
        single = {f"{s}[-1]" for s in ROUND} | ({"baseline[-1]"} if index == 0 else set())
        assert group == {f"round_{index}.{name}" for name in mapped | single}
