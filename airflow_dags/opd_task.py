"""From a call of `opd` to an Airflow task: a process of the worker, or a pod.

Promises: a task that may succeed later is tried again with growing pauses. A task holds no state:
run twice, cleared or killed, it finds what is committed and does the rest.
"""

from datetime import timedelta
from typing import Any

from opd_command import Call
from opd_notices import task_failed
from opd_process import ProcessTask
from opd_settings import Settings

MAP_LABEL = "{{ task.each.get('teacher', '') }} {{ task.each.get('worker', '') }}"


def opd_task(
    task_id: str, call: Call, *, kind: str, settings: Settings, each: Any = None, **options: Any
) -> Any:
    """Return the task of a call, mapped over a list where there is one.

    Args:
        task_id: its name.
        call: command and options.
        kind: one of `opd_settings.KINDS`: which hardware, pool and time it has.
        settings: where tasks run.
        each: XCom of the options of each mapped task; none of them makes it skipped.
        options: further options of the operator.
    """
    hardware = settings.kind(kind)
    common = {
        "task_id": task_id,
        "call": call,
        "retries": settings.retries,
        "retry_delay": timedelta(seconds=settings.retry_delay_s),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=settings.max_retry_delay_s),
        "execution_timeout": timedelta(hours=hardware.timeout_h),
        "on_failure_callback": task_failed,
        "pool_slots": hardware.pool_slots,
        **({"pool": hardware.pool} if hardware.pool else {}),
        **({"queue": hardware.queue} if hardware.queue else {}),
        **options,
    }
    operator: Any = ProcessTask
    if settings.backend == "kubernetes":
        from opd_pod import PodTask, pod_options

        operator = PodTask
        common |= pod_options(settings, hardware)
    else:
        common |= {"env": hardware.env, "stop_s": settings.stop_s}
    if each is None:
        return operator(**common)
    return operator.partial(**common, map_index_template=MAP_LABEL).expand(each=each)
