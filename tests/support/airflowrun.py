"""What the tests ask of Airflow itself; runs in Airflow's environment, where nothing of ours is.

usage: python airflowrun.py DAGS NUMBER
Reads a request from each line of stdin, a JSON object with `env`, `without`, and either `dag` and
`conf` (run with `dag.test`) or `look` (parse alone). Its answer, a line of JSON, goes to the file
descriptor of that number; what Airflow prints goes where it goes.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, SupportsIndex


def main(folder: str, number: str) -> None:
    """Answer the requests, one after the other."""
    time.sleep = _brief_sleep
    with os.fdopen(int(number), "w") as answers:
        for line in sys.stdin:
            print(json.dumps(_answered(Path(folder), json.loads(line))), file=answers, flush=True)


_sleep = time.sleep


def _brief_sleep(seconds: float | SupportsIndex) -> None:
    """Sleep, but not for the second that `dag.test` takes between two looks at its tasks."""
    _sleep(0.01 if seconds == 1 else seconds)


def _answered(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    before = dict(os.environ)
    os.environ.update(request.get("env", {}))
    for name in request.get("without", ()):
        os.environ.pop(name, None)
    try:
        return _answer(folder, request)
    finally:
        sys.stdout.flush()
        os.environ.clear()
        os.environ.update(before)


def _answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.exceptions import ParamValidationError

    for name in [name for name in sys.modules if name.startswith("opd_")]:
        del sys.modules[name]  # the settings of this request are read anew
    if request.get("look"):
        return _look(DagBag(folder))
    bag = DagBag(folder / f"{request['dag']}.py")
    try:
        run = bag.dags[request["dag"]].test(run_conf=request["conf"])
    except ParamValidationError as error:
        return {"refused": str(error)}
    tasks = run.get_task_instances()
    return {
        "state": str(run.state),
        "tasks": {f"{one.task_id}[{one.map_index}]": str(one.state) for one in tasks},
    }


def _look(bag: Any) -> dict[str, Any]:
    from airflow.serialization.serialized_objects import DagSerialization

    heavy = {"torch", "vllm", "pyarrow", "polars", "pipeline", "cli", "schemas"}
    return {
        "errors": bag.import_errors,
        "heavy": sorted(heavy & set(sys.modules)),
        "dags": {
            name: {
                "after": {one.task_id: sorted(one.downstream_task_ids) for one in dag.tasks},
                "doc": dag.doc_md,
                "schedule": str(dag.schedule),
                "kinds": {one.task_id: one.task_type for one in dag.tasks},
                "facts": {one.task_id: _facts(one) for one in dag.tasks},
                "serialized": json.dumps(DagSerialization.to_dict(dag), sort_keys=True),
            }
            for name, dag in bag.dags.items()
        },
        "pods": {
            one.task_id: _pod(one)
            for dag in bag.dags.values()
            for one in dag.tasks
            if one.task_type == "PodTask"
        },
        "ends": {str(code): _end_of_pod(bag, code) for code in (0, 2, 3, 6, 7, 130, 137, 143)}
        if any(one.task_type == "PodTask" for dag in bag.dags.values() for one in dag.tasks)
        else {},
    }


def _end_of_pod(bag: Any, code: int) -> str:
    """Return what becomes of a task whose pod ended with an exit code."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import models as k8s

    task = bag.dags["opd_rounds"].get_task("round_0.gate")
    ended = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=code))
    status = k8s.V1ContainerStatus(
        name="base", state=ended, image="", image_id="", ready=False, restart_count=0
    )
    phase = "Failed" if code else "Succeeded"
    state = k8s.V1PodStatus(phase=phase, container_statuses=[status])
    pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name="p"), status=state)

    def execute(self: Any, context: Any) -> Any:
        """Stand in for the cluster: the provider's own clean-up decides about the pod."""
        self.remote_pod = pod
        self._read_pod_container_states = self._read_pod_events = lambda *a, **k: None
        self.patch_already_checked = self.process_pod_deletion = lambda *a, **k: None
        self.is_istio_enabled = lambda pod: False
        self.cleanup(pod, pod)
        return {"stage": "gate", "decision": "go", "parts": []}

    original, KubernetesPodOperator.execute = KubernetesPodOperator.execute, execute
    try:
        return json.dumps(task.execute({"params": {"config": "s3://bucket/run.toml"}}))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        KubernetesPodOperator.execute = original


def _facts(task: Any) -> dict[str, Any]:
    seconds = task.execution_timeout.total_seconds() if task.execution_timeout else None
    return {
        "retries": task.retries,
        "pool": task.pool,
        "queue": task.queue,
        "timeout_s": seconds,
        "retry_delay_s": task.retry_delay.total_seconds(),
        "backoff": task.retry_exponential_backoff,
        "max_retry_delay_s": task.max_retry_delay and task.max_retry_delay.total_seconds(),
        "callbacks": bool(task.on_failure_callback),
    }


def _pod(task: Any) -> dict[str, Any]:
    """Return the pod that a task would start, as Kubernetes gets it."""
    from kubernetes.client import ApiClient

    if task.is_mapped:
        task = task.unmap({"each": {"teacher": "main", "worker": 1}})
    params = {"config": "s3://b/run.toml", "overrides": ["a.b=1"], "rounds": 2, "workers": 3}
    params |= {"branch": "b", "teacher": "main", "name": "n", "first_round": 0}
    task.arguments = task.call.command_line(params, task.each)
    found: dict[str, Any] = ApiClient().sanitize_for_serialization(task.build_pod_request_obj())
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
