"""Airflow for tests: its environment, a home with a database, and a live scheduler on loopback.

Promises: nothing of a developer's Airflow is used; all processes are stopped by their own ids.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.repository import REPOSITORY
from tests.support.servers import free_port

DAGS = REPOSITORY / "airflow_dags"
OPD = Path(sys.executable).parent / "opd"
PATIENCE_S = 300.0
"""Seconds that a test waits for Airflow; a busy machine takes a tenth of it."""


def airflow_bin() -> Path:
    """Return the programs of Airflow's environment; skip the test where there is none."""
    folder = REPOSITORY / ".venv-airflow" / "bin"
    if not (folder / "airflow").exists():
        pytest.skip("there is no Airflow in .venv-airflow: make .venv-airflow/.airflow brings it")
    return folder


@dataclass(frozen=True)
class AirflowHome:
    """A fresh home of Airflow with its database."""

    folder: Path
    settings: str = "configs = ['/']\nrounds = 2\nretries = 2\nretry_delay_s = 0\nstop_s = 20\n"
    opd: str = str(OPD)
    """What tasks run as `opd`."""

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of Airflow's processes."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "OPD_"))}
        return {
            **kept,
            "PATH": f"{airflow_bin()}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.folder}/airflow.db",
            "OPD_BIN": self.opd,
            "OPD_AIRFLOW_SETTINGS": str(self.folder / "opd.toml"),
        }

    def prepare(self) -> "AirflowHome":
        """Make the database and the settings; return itself."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "opd.toml").write_text(self.settings)
        command = [str(airflow_bin() / "airflow"), "db", "migrate"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return self


class AirflowRuns:
    """Airflow in a process that runs one DAG after the other with `dag.test`."""

    def __init__(self, home: AirflowHome) -> None:
        """Start it; Airflow is imported with the first request."""
        self._home, self._env = home, home.env
        self._printed = (home.folder / "printed.log").open("w+")
        answers, given = os.pipe()
        self._answers = os.fdopen(answers)
        self._process = subprocess.Popen(
            [airflow_bin() / "python", Path(__file__).with_name("airflowrun.py"), DAGS, str(given)],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            text=True,
            cwd=home.folder,
            pass_fds=[given],
        )
        os.close(given)

    def ask(self, *requests: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
        """Return the answers of `airflowrun.py`, and all that it printed meanwhile."""
        self._printed.seek(0, os.SEEK_END)
        begin = self._printed.tell()
        answers = [self._answer(request) for request in requests]
        self._printed.seek(begin)
        return answers, self._printed.read()

    def close(self) -> None:
        """End it."""
        with self._process, self._answers, self._printed:
            self._process.terminate()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, with the variables that a test has set since the start."""
        now = self._home.env
        changed = {name: value for name, value in now.items() if self._env.get(name) != value}
        gone = [name for name in self._env if name not in now]
        whole = {
            **request,
            "env": {**changed, **request.get("env", {})},
            "without": [*gone, *request.get("without", ())],
        }
        assert self._process.stdin is not None
        print(json.dumps(whole), file=self._process.stdin, flush=True)
        line = self._answers.readline()
        assert line, (self._home.folder / "printed.log").read_text()[-6000:]
        answer: dict[str, Any] = json.loads(line)
        return answer


class LiveAirflow:
    """A running `airflow standalone`: API server, scheduler, DAG processor, triggerer."""

    def __init__(self, home: AirflowHome) -> None:
        """Start it and wait until it answers."""
        self.home, port = home, free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {
            **home.env,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        }
        self._printed = (home.folder / "standalone.log").open("w")
        self.process = subprocess.Popen(
            [airflow_bin() / "airflow", "standalone"],
            env=env,
            cwd=home.folder,
            stdout=self._printed,
            stderr=self._printed,
            start_new_session=True,
        )
        try:
            self.wait_for(lambda: "opd_rounds" in [d["dag_id"] for d in self.get("dags")["dags"]])
        except BaseException:
            self.stop()
            raise

    def get(self, path: str) -> Any:
        """Return the answer to a GET below /api/v2, {} while nobody answers."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a POST below /api/v2."""
        return self._send("POST", path, body)

    def trigger(self, dag: str, run: str, conf: Mapping[str, Any]) -> Any:
        """Start a DAG run with Params."""
        body = {"dag_run_id": run, "logical_date": None, "conf": conf}
        return self.post(f"dags/{dag}/dagRuns", body)

    def tasks(self, dag: str, run: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a DAG run by name and map index."""
        found = self.get(f"dags/{dag}/dagRuns/{run}/taskInstances?limit=500")
        return {f"{t['task_id']}[{t['map_index']}]": t for t in found["task_instances"]}

    def log(self, dag: str, run: str, task: str, attempt: int, map_index: int = -1) -> str:
        """Return the log of one try of a task."""
        place = f"dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}"
        return json.dumps(self.get(f"{place}?map_index={map_index}&full_content=true"))

    def state(self, dag: str, run: str) -> str:
        """Return the state of a DAG run."""
        return str(self.get(f"dags/{dag}/dagRuns/{run}").get("state"))

    def finished(self, dag: str, run: str) -> str:
        """Wait for a DAG run and return its state."""
        self.wait_for(lambda: self.state(dag, run) in ("success", "failed"))
        return self.state(dag, run)

    def clear(self, dag: str, run: str, tasks: Sequence[str]) -> str:
        """Clear tasks of a finished DAG run, wait for it, and return its state."""
        body = {
            "dry_run": False,
            "dag_run_id": run,
            "task_ids": list(tasks),
            "only_failed": False,
            "reset_dag_runs": True,
        }
        assert self.post(f"dags/{dag}/clearTaskInstances", body)["total_entries"] >= len(tasks)
        self.wait_for(lambda: self.state(dag, run) in ("running", "queued"))
        return self.finished(dag, run)

    def wait_for(self, condition: Any) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(KeyError):
                if condition():
                    return
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.5)

    def printed(self) -> str:
        """Return the end of what Airflow printed."""
        return (self.home.folder / "standalone.log").read_text()[-4000:]

    def stop(self) -> None:
        """End all its processes: with SIGTERM first, what is left by SIGKILL."""
        owner = psutil.Process(self.process.pid)
        everyone = [owner, *owner.children(recursive=True)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(everyone, timeout=5)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._printed.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v2/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            return {"status": error.code, "detail": error.read().decode()}
        except (OSError, ValueError):
            return {}


def find_chromium() -> str:
    """Return a Chromium of this machine; skip the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium brings it")
    return found
