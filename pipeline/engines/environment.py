"""The environment of processes that opd starts: what they need of ours, and no credential.

Promises: a variable is passed on only where its name is in a table here, so that keys of stores
and of other servers stay with opd.
"""

import os

SYSTEM = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "LANG", "LANGUAGE", "LC_*", "TERM"),
    *("TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "PYTHONPATH"),
    *("PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
)
"""Variables that every program may need; `*` stands for the rest of a name."""

THREADS = ("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "TOKENIZERS_*")
"""Variables that bound threads."""

MODELS = (
    *THREADS,
    *("CUDA_*", "CUDNN_*", "CUBLAS_*", "NVIDIA_*", "NCCL_*", "NVSHMEM_*", "UCX_*", "GLOO_*"),
    *("ROCM_*", "ROCR_*", "HIP_*", "HSA_*", "MIOPEN_*", "RCCL_*", "AMD_*", "ZE_*", "SYCL_*"),
    *("VLLM_*", "FLASHINFER_*", "DG_*", "TRITON_*", "TORCH*", "PYTORCH_*", "RAY_*", "CC", "CXX"),
    *("HF_*", "HUGGINGFACE_*", "HUGGING_FACE_*", "TRANSFORMERS_*", "SAFETENSORS_*"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
)
"""Variables that a server of models may need."""


def passed_on(names: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of this process that a child gets: those of `SYSTEM`, and some more.

    Args:
        names: the further ones; `*` at the end stands for the rest of a name.
    """
    exact = {name for name in (*SYSTEM, *names) if not name.endswith("*")}
    begun = tuple(name[:-1] for name in (*SYSTEM, *names) if name.endswith("*"))
    return {k: v for k, v in os.environ.items() if k in exact or k.startswith(begun)}
