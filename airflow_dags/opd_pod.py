"""The same call in a pod: image, GPUs, volumes, and secrets by reference only.

Needs the provider apache-airflow-providers-cncf-kubernetes; loaded for that backend alone.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s

from opd_command import Call, Outcome
from opd_outcome import arguments_of, end_of
from opd_settings import Kind, Kubernetes, Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

RESULT_FILE = "/airflow/xcom/return.json"
"""Where the provider's sidecar looks for a pod's result."""


class PodTask(KubernetesPodOperator):
    """Runs a call of `opd` in a pod."""

    def __init__(
        self, *, call: Call, each: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Name the call.

        Args:
            call: command and options.
            each: options of this one of several mapped tasks.
            options: those of the pod operator.
        """
        super().__init__(**options)
        self.call, self.each = call, dict(each or {})

    def execute(self, context: "Context") -> Any:
        """Run it and return what of its result goes to XCom.

        Raises:
            AirflowException: it may succeed when it is tried again.
            AirflowFailException: it will not.
            AirflowSkipException: there is nothing to do.
        """
        self.arguments = arguments_of(self, context)
        try:
            result = super().execute(context)
        except AirflowException:
            code = self._exit_code()
            if code is None:
                raise  # the pod never ran, or was lost: tried again
            return end_of(self, Outcome(code, {}), context)
        return end_of(self, Outcome(0, result or {}), context)

    def _exit_code(self) -> int | None:
        """Return the exit code of the pod's main container, where it ended by itself."""
        status = getattr(self.remote_pod, "status", None)
        for one in getattr(status, "container_statuses", None) or ():
            ended = one.state.terminated if one.name == self.base_container_name else None
            if ended is not None and ended.exit_code != 0:
                return int(ended.exit_code)
        return None


def pod_options(settings: Settings, kind: Kind) -> dict[str, Any]:
    """Return the pod operator's options for a kind of tasks."""
    shared = settings.kubernetes
    wanted = {"cpu": kind.cpu, "memory": kind.memory, "nvidia.com/gpu": kind.gpus or None}
    resources = {name: str(value) for name, value in wanted.items() if value is not None}
    volumes, mounts = _volumes(settings)
    return {
        "image": kind.image or shared.image,
        "namespace": shared.namespace,
        "cmds": list(shared.command),
        "service_account_name": shared.service_account,
        "image_pull_secrets": [k8s.V1LocalObjectReference(n) for n in shared.image_pull_secrets],
        "env_vars": {**kind.env, "OPD_JSON_FILE": RESULT_FILE},
        "env_from": _variables(shared),
        "container_resources": k8s.V1ResourceRequirements(requests=resources, limits=resources),
        "node_selector": kind.node_selector,
        "tolerations": [k8s.V1Toleration(**one) for one in kind.tolerations],
        "volumes": volumes,
        "volume_mounts": mounts,
        "in_cluster": shared.in_cluster,
        "startup_timeout_seconds": shared.startup_timeout_s,
        "termination_grace_period": round(settings.stop_s),
        "do_xcom_push": True,
    }


def _variables(shared: Kubernetes) -> list[k8s.V1EnvFromSource]:
    """Return the secrets and config maps whose keys become variables."""
    secrets = [k8s.V1SecretEnvSource(name=name) for name in shared.secrets]
    maps = [k8s.V1ConfigMapEnvSource(name=name) for name in shared.config_maps]
    return [
        *(k8s.V1EnvFromSource(secret_ref=one) for one in secrets),
        *(k8s.V1EnvFromSource(config_map_ref=one) for one in maps),
    ]


def _volumes(settings: Settings) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    volumes, mounts = [], []
    for index, one in enumerate(settings.kubernetes.volumes):
        name = f"volume-{index}"
        source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=one.claim)
        volumes.append(k8s.V1Volume(name=name, persistent_volume_claim=source))
        mounts.append(k8s.V1VolumeMount(name=name, mount_path=one.mount, read_only=one.read_only))
    if size := settings.kubernetes.shared_memory:
        memory = k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=size)
        volumes.append(k8s.V1Volume(name="shared-memory", empty_dir=memory))
        mounts.append(k8s.V1VolumeMount(name="shared-memory", mount_path="/dev/shm"))
    return volumes, mounts
