"""The DAGs in a real Airflow: what they are made of, what they refuse, how their tasks end."""

import importlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.scorers import find_scorers
from pipeline.store.storage import Storage
from tests.support.airflowhost import AirflowRuns
from tests.support.repository import REPOSITORY
from tests.support.tiny import write_run

POD_SETTINGS = """
backend = "kubernetes"
config = "s3://bucket/run.toml"
rounds = 1
[kubernetes]
image = "registry.example.org/opd:1"
namespace = "distill"
service_account = "opd"
image_pull_secrets = ["pull"]
secrets = ["opd-s3"]
config_maps = ["opd-settings"]
shared_memory = "8Gi"
[[kubernetes.volumes]]
claim = "models"
mount = "/models"
read_only = true
[kinds.score]
gpus = 4
cpu = "16"
memory = "64Gi"
image = "registry.example.org/opd-vllm:1"
pool = "h100"
timeout_h = 2.0
env = { NCCL_DEBUG = "WARN" }
node_selector = { gpu = "h100" }
tolerations = [{ key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" }]
"""

CLUSTER = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {}}],
}
"""A cluster that is not there: pods are rendered for it, and not sent."""


@pytest.fixture(scope="module")
def looks(
    airflow: AirflowRuns, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what Airflow finds: twice by these settings, with pods, and with a mistake."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "pods.toml").write_text(POD_SETTINGS)
    (folder / "kube.json").write_text(json.dumps(CLUSTER))
    pods_env = {
        "OPD_AIRFLOW_SETTINGS": str(folder / "pods.toml"),
        "KUBECONFIG": str(folder / "kube.json"),
    }
    (folder / "mistake.toml").write_text("round = 2\n")
    answers, _ = airflow.ask(
        {"look": True},
        {"look": True},
        {"look": True, "env": pods_env},
        {"look": True, "env": {"OPD_AIRFLOW_SETTINGS": str(folder / "mistake.toml")}},
    )
    first, second, pods, mistake = answers
    return first, second, pods, mistake


def test_the_dags_load_with_airflow_and_the_standard_library_alone(looks: Any) -> None:
    assert looks[0]["errors"] == {} and looks[0]["heavy"] == []
    assert set(looks[0]["dags"]) == {"opd_rounds", "opd_reprocess", "opd_upkeep"}
    assert all(len(dag["doc"]) > 300 for dag in looks[0]["dags"].values())


def test_rounds_follow_each_other_stage_by_stage(looks: Any) -> None:
    after = looks[0]["dags"]["opd_rounds"]["after"]
    assert after["round_0.plan"] == ["round_0.baseline", "round_0.rollout", "round_0.teachers"]
    assert after["round_0.rollout"] == ["round_0.grade", "round_0.score"]
    assert after["round_0.teachers"] == ["round_0.score"]
    assert after["round_0.grade"] == after["round_0.score"] == ["round_0.train"]
    assert after["round_0.train"] == ["round_0.eval", "round_0.gate"]
    assert after["round_0.gate"] == ["round_1.plan"]
    assert after["round_1.gate"] == [] and "round_1.baseline" not in after


def test_the_picture_of_a_round_is_that_of_the_dag(
    looks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    drawing = importlib.import_module("make_airflow")
    drawn = drawing.render(looks[0]["dags"]["opd_rounds"]["after"])
    assert drawing.TARGET.read_text(encoding="utf-8") == drawn, (
        "docs/airflow-graph.svg is out of date: run .venv-airflow/bin/python docs/make_airflow.py"
    )
    assert all(f">{name}</text>" in drawn for name in drawing.WORDS)


def test_the_same_files_give_the_same_dags(looks: Any) -> None:
    """Otherwise each parse would be another version of the DAG."""
    for name, dag in looks[0]["dags"].items():
        assert dag["serialized"] == looks[1]["dags"][name]["serialized"]


def test_every_call_is_tried_again_with_growing_pauses(looks: Any) -> None:
    for dag in looks[0]["dags"].values():
        for name, kind in dag["kinds"].items():
            if kind == "ProcessTask":
                facts = dag["facts"][name]
                assert facts["retries"] == 2 and facts["backoff"] == 2.0 and facts["callbacks"]
                assert facts["max_retry_delay_s"] == 1800 and facts["timeout_s"] == 24 * 3600


def test_upkeep_is_scheduled_where_there_is_a_configuration(looks: Any) -> None:
    assert "None" in looks[0]["dags"]["opd_upkeep"]["schedule"] or not looks[0]["dags"][
        "opd_upkeep"
    ]["schedule"].startswith("@")
    assert "@weekly" in looks[2]["dags"]["opd_upkeep"]["schedule"]


def test_a_mistake_in_the_settings_is_an_import_error_with_the_key(looks: Any) -> None:
    assert looks[3]["dags"] == {} and len(looks[3]["errors"]) == 3
    text = next(iter(looks[3]["errors"].values()))
    assert "mistake.toml: round: unknown key; did you mean 'rounds'?" in text


def test_pods_have_the_image_gpus_volumes_and_secrets_by_name(looks: Any) -> None:
    assert looks[2]["errors"] == {}
    pod = looks[2]["pods"]["round_0.score"]
    assert pod["apiVersion"] == "v1" and pod["kind"] == "Pod"
    assert pod["metadata"]["namespace"] == "distill"
    spec = pod["spec"]
    main = next(one for one in spec["containers"] if one["name"] == "base")
    assert main["image"] == "registry.example.org/opd-vllm:1" and main["command"] == ["opd"]
    assert main["args"] == [
        *("score", "--round", "0", "--config", "s3://b/run.toml", "--set", "a.b=1"),
        *("--teacher", "main", "--json"),
    ]
    expected = {"nvidia.com/gpu": "4", "cpu": "16", "memory": "64Gi"}
    assert main["resources"] == {"limits": expected, "requests": expected}
    assert main["envFrom"] == [
        {"secretRef": {"name": "opd-s3"}},
        {"configMapRef": {"name": "opd-settings"}},
    ]
    variables = {one["name"]: one.get("value") for one in main["env"]}
    assert variables["OPD_JSON_FILE"] == "/airflow/xcom/return.json"
    assert variables["NCCL_DEBUG"] == "WARN"
    assert spec["nodeSelector"] == {"gpu": "h100"} and spec["serviceAccountName"] == "opd"
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    mounts = {one["mountPath"]: one for one in main["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True and "/dev/shm" in mounts  # noqa: S108
    volumes = {one["name"]: one for one in spec["volumes"]}
    claim = volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]
    assert claim == {"claimName": "models"}
    memory = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]  # noqa: S108
    assert memory == {"medium": "Memory", "sizeLimit": "8Gi"}


def test_every_pod_is_whole_and_holds_no_secret(looks: Any) -> None:
    pods = looks[2]["pods"]
    assert len(pods) == 8 + 10 + 4  # of rounds, reprocess and upkeep
    for pod in pods.values():
        main = next(one for one in pod["spec"]["containers"] if one["name"] == "base")
        assert main["image"] and main["args"][-1] == "--json"
        assert not {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"} & set(json.dumps(pod).split('"'))
    facts = looks[2]["dags"]["opd_rounds"]["facts"]
    assert facts["round_0.score"]["pool"] == "h100"
    assert facts["round_0.score"]["timeout_s"] == 7200
    assert facts["round_0.train"]["pool"] == "default_pool"


def test_the_exit_code_of_a_pod_decides_as_that_of_a_process_does(looks: Any) -> None:
    ends = looks[2]["ends"]
    assert json.loads(ends.pop("0")) == {"stage": "gate", "decision": "go"}
    failed = {code for code, end in ends.items() if end.startswith("AirflowFailException")}
    again = {code for code, end in ends.items() if end.startswith("AirflowException")}
    assert (failed, again) == ({"2", "3"}, {"6", "7", "130", "137", "143"}), ends


def stand_in(folder: Path, name: str, code: int | str) -> str:
    """Write a program that ends as `opd` may, and return its path."""
    end = f"kill -{code} $$" if isinstance(code, str) else f"exit {code}"
    path = folder / name
    message = f"this is the message of {name}"
    path.write_text(
        f"#!/bin/sh\necho 'opd: {message}' >&2\n"
        f'echo \'{{"error": "{message}", "exit_code": 0}}\'\n'
        f"echo x >> {folder}/{name}.calls\n{end}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_how_tasks_end(airflow: AirflowRuns, tmp_path: Path) -> None:
    """In one process: each exit code, a missing program, wrong Params; `dag.test` tries again."""
    codes: dict[str, int | str] = {f"code{c}": c for c in (2, 3, 4, 6, 7, 130)}
    codes |= {"killed": "KILL"}
    conf = {"config": str(tmp_path / "run.toml")}
    refused = [
        {},
        {"config": ""},
        {**conf, "workers": 0},
        {**conf, "workers": "2"},
        {**conf, "rounds": 3},
        {**conf, "teachers": "main"},
        {**conf, "overrides": ["no-section=1"]},
    ]
    told = tmp_path / "told"
    notify = tmp_path / "notify.toml"
    notify.write_text(
        f'configs = ["/"]\nrounds = 1\nretries = 1\nretry_delay_s = 0\n'
        f'notify = ["tee", "-a", "{told}"]\n'
    )
    shared = {"OPD_AIRFLOW_SETTINGS": str(notify)}
    requests: list[dict[str, Any]] = [
        {
            "dag": "opd_rounds",
            "conf": conf,
            "env": {**shared, "OPD_BIN": stand_in(tmp_path, name, code)},
        }
        for name, code in codes.items()
    ]
    requests.append({"dag": "opd_rounds", "conf": conf, "without": ["OPD_BIN"], "env": shared})
    requests.append(
        {"dag": "opd_rounds", "conf": conf, "env": {**shared, "OPD_BIN": "/nowhere/opd"}}
    )
    requests += [{"dag": "opd_rounds", "conf": one} for one in refused]
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!/bin/sh\ntrap 'echo x >> {tmp_path}/asked; exit 130' TERM\nsleep 60 &\nwait $!\n"
    )
    slow.chmod(0o755)
    limit = tmp_path / "limit.toml"
    limit.write_text(
        "configs = ['/']\nrounds = 1\nretries = 1\nretry_delay_s = 0\n"
        "[kinds.plan]\ntimeout_h = 3e-4\n"
    )
    late = {"OPD_AIRFLOW_SETTINGS": str(limit), "OPD_BIN": str(slow)}
    requests.append({"dag": "opd_rounds", "conf": conf, "env": late})
    answers, printed = airflow.ask(*requests)
    assert answers.pop()["tasks"]["round_0.plan[-1]"] == "failed"
    assert (tmp_path / "asked").read_text().split() == ["x", "x"]  # SIGTERM, and tried again
    for (name, code), answer in zip(codes.items(), answers, strict=False):
        calls = len((tmp_path / f"{name}.calls").read_text().split())
        assert answer["state"] == "failed", name
        assert answer["tasks"]["round_0.plan[-1]"] == "failed", name
        assert answer["tasks"]["round_0.train[-1]"] == "upstream_failed", name
        assert calls == (2 if code in (6, 7, 130, "KILL") else 1), name
        assert f"opd: this is the message of {name}" in printed
    missing, nowhere = answers[len(codes) : len(codes) + 2]
    assert missing["tasks"]["round_0.plan[-1]"] == nowhere["tasks"]["round_0.plan[-1]"] == "failed"
    assert "OPD_BIN is not set on this worker" in printed
    assert "/nowhere/opd is no program on this worker" in printed
    assert all("refused" in answer for answer in answers[len(codes) + 2 :]), answers[
        -len(refused) :
    ]
    events = [json.loads(line) for line in told.read_text().replace("}{", "}\n{").splitlines()]
    assert {"task_failed", "run_failed"} <= {event["event"] for event in events}
    failed = [event for event in events if event["event"] == "task_failed"]
    assert len(failed) == len(codes) + 2  # once for each task, after its last try
    assert any("this is the message of code3" in event["error"] for event in failed)


def test_a_plan_alone_is_a_dry_run(airflow: AirflowRuns, tmp_path: Path) -> None:
    config = str(write_run(tmp_path))
    settings, told = tmp_path / "notify.toml", tmp_path / "told"
    settings.write_text(f'configs = ["/"]\nrounds = 1\nnotify = ["tee", "-a", "{told}"]\n')
    env = {"OPD_AIRFLOW_SETTINGS": str(settings)}
    (tmp_path / "closed.toml").write_text('config = "/data/run.toml"\nrounds = 1\n')
    closed = {"OPD_AIRFLOW_SETTINGS": str(tmp_path / "closed.toml")}
    answers, printed = airflow.ask(
        {"dag": "opd_rounds", "conf": {"config": config, "dry_run": True}, "env": env},
        {"dag": "opd_rounds", "conf": {"config": config, "teachers": ["other"]}},
        {"dag": "opd_rounds", "conf": {"config": config}, "env": closed},
        {"dag": "opd_rounds", "conf": {"config": config, "overrides": ["eval.reward=os:system"]}},
    )
    dry, wrong, *refused = answers
    for answer in refused:
        assert answer["state"] == answer["tasks"]["round_0.plan[-1]"] == "failed"
    assert f"Param config = '{config}' is no configuration that a DAG run may name" in printed
    assert "Param overrides: 'eval.reward' is no key that a DAG run may replace" in printed
    assert dry["state"] == "success" and dry["tasks"]["round_0.plan[-1]"] == "success"
    for name in ("rollout", "grade", "score", "train", "eval", "gate", "baseline"):
        assert dry["tasks"][f"round_0.{name}[-1]"] == "skipped"
    assert not (tmp_path / "store").exists() and '"teacher_tokens": 832' in printed
    assert json.loads(told.read_text())["event"] == "run_succeeded"
    assert wrong["state"] == "failed" and "there is no teacher 'other'; known: main" in printed


@pytest.mark.slow
def test_scores_are_reprocessed_tried_without_the_teacher_and_kept_clean(
    airflow: AirflowRuns, run_copy: Path
) -> None:
    config = run_copy / "run.toml"
    storage = Storage(str(run_copy / "store"))
    (scorer,) = find_scorers(storage, None)
    garbage = run_copy / "store" / "rollouts" / "garbage.parquet"
    garbage.write_bytes(b"nobody names it")
    conf: dict[str, Any] = {
        "config": str(config),
        "sources": [scorer],
        "name": "packed",
        "branch": "tried",
    }
    conf |= {"codec": "packed-v1", "k": 3, "overrides": ["eval.teachers=false"]}
    upkeep: dict[str, Any] = {
        "config": str(config),
        "sample": 2,
        "older_than_h": 0,
        "threshold_gb": 0,
    }
    upkeep["delete"] = True
    answers, _ = airflow.ask(
        {"dag": "opd_reprocess", "conf": {"config": str(config), "invalid_rounds": [0]}},
        {"dag": "opd_upkeep", "conf": upkeep},
    )
    invalid, cleaned = answers
    (run_copy / "main" / "model.safetensors").unlink()  # the teacher
    (made,), printed = airflow.ask({"dag": "opd_reprocess", "conf": conf})
    assert made["state"] == "success"
    skipped = {"invalid[-1]", "branch.grade[-1]"}
    assert {name for name, state in made["tasks"].items() if state == "skipped"} == skipped
    assert "accuracy: tiny" in printed and storage.exists(
        "runs/tried/checkpoints/0001/manifest.json"
    )
    assert len(list(find_scorers(storage, None))) == 2
    assert invalid["state"] == "success" and invalid["tasks"]["invalid[0]"] == "success"
    assert invalid["tasks"]["reprocess[-1]"] == invalid["tasks"]["branch.plan[-1]"] == "skipped"
    assert set(cleaned["tasks"].values()) == {"success"} and not garbage.exists()
