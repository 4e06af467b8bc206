"""Settings of vLLM from a stage's section, for the engine in this process and for a server."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.engines.start import Start
from pipeline.models.source import ModelSource, load_settings
from pipeline.sizing.shape import cached_numbers
from schemas.config.engines import EngineSection
from schemas.errors import CapacityError, ConfigError

GIB = 1 << 30

CPU_SHARE = 0.25
"""Share of the free memory that the key-value cache may take on a CPU."""

BLOCK_TOKENS = 128
"""Tokens of a block of vLLM's key-value cache on a CPU."""

LEAST_BATCH_TOKENS = 64
"""Tokens of a forward pass below which memory is not the matter."""


def model_arguments(start: Start, model: ModelSource, *, batch_tokens: int) -> dict[str, Any]:
    """Return the arguments that vLLM's `LLM` and its server share.

    Args:
        start: what vLLM starts with.
        model: the whole model that it holds: of an adapter its base, or a merged copy.
        batch_tokens: most tokens of a forward pass.
    """
    section, shape, dtype = start.section.vllm, load_settings(model), start.dtype
    asked = start.max_tokens and start.max_tokens + 1
    limits = [getattr(shape, "max_position_embeddings", None), asked]
    length = min(int(limit) for limit in limits if limit is not None)
    sequences = max(1, min(section.max_num_seqs, batch_tokens))
    arguments: dict[str, Any] = {
        "model": model.location,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": dtype,
        **_tokenizer_arguments(start.tokenizer),
        "generation_config": "vllm",  # no sampling parameter comes from the model's files
        "logprobs_mode": "processed_logprobs",  # those of the distribution that is drawn from
        "max_logprobs": 4096,
        "max_model_len": length,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": batch_tokens,
        "enable_prefix_caching": section.prefix_caching,
        "tensor_parallel_size": section.tensor_parallel_size,
        "pipeline_parallel_size": section.pipeline_parallel_size,
        "seed": 0,
    }
    # on a CPU, vLLM 0.32 ends at a prompt with a seed that it computes in parts
    in_parts = torch.cuda.is_available() or start.use == "score"
    arguments["enable_chunked_prefill"] = in_parts
    if not in_parts:
        arguments["max_num_batched_tokens"] = max(batch_tokens, length)
    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = section.gpu_memory_utilization
        arguments["enforce_eager"] = section.enforce_eager
        if section.kv_cache_gb is not None:
            arguments["kv_cache_memory_bytes"] = int(section.kv_cache_gb * GIB)
    else:
        arguments["enforce_eager"] = True
        arguments["kv_cache_memory_bytes"] = (
            int(section.kv_cache_gb * GIB)
            if section.kv_cache_gb is not None
            else cpu_cache_bytes(shape, dtype, tokens=length * sequences, least=length)
        )
    return arguments


def _tokenizer_arguments(tokenizer: ModelSource | None) -> dict[str, Any]:
    if tokenizer is None:
        return {"skip_tokenizer_init": True}  # token ids in, token ids out
    return {
        "skip_tokenizer_init": False,
        "tokenizer": tokenizer.location,
        "tokenizer_revision": tokenizer.revision,
        "tokenizer_mode": "hf",  # the one that opd reads with
    }


def executor_argument(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what keeps an engine in a process of its own from starting another for its worker.

    On a CPU vLLM does so by itself, and gives that one other threads than the caller's.
    """
    if _num_workers(arguments) > 1 or torch.cuda.is_available():
        return {}
    return {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"}


def worker_environment(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what several workers of vLLM on a CPU must be told, unless the user said otherwise.

    By itself vLLM binds each of them to a NUMA node of its own, and ends where there are fewer.
    """
    if _num_workers(arguments) == 1 or torch.cuda.is_available():
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def check_server_split(settings: EngineSection) -> None:
    """Make sure that a server on this machine can split a model as a section asks.

    Raises:
        ConfigError: it would end at its first request.
    """
    groups = settings.vllm.pipeline_parallel_size
    if groups > 1 and not torch.cuda.is_available():
        raise ConfigError(
            f"vllm.pipeline_parallel_size = {groups}: vLLM 0.32's server cannot split a model by "
            "layers on a CPU. Set engine = 'vllm', which can, or pipeline_parallel_size = 1"
        )


def _num_workers(arguments: Mapping[str, Any]) -> int:
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return math.prod(int(arguments.get(name, 1)) for name in names)


def cpu_cache_bytes(shape: Any, dtype: str, *, tokens: int, least: int) -> int:
    """Return the size of the key-value cache on a CPU: what tokens need, or what memory allows.

    Args:
        shape: the model's transformers configuration.
        dtype: number format of the cache.
        tokens: tokens that are wanted.
        least: tokens that one sequence needs.

    Raises:
        CapacityError: not even one sequence fits the free memory.
    """
    import psutil

    each = cached_numbers(shape) * getattr(torch, dtype).itemsize
    blocks = 2 * BLOCK_TOKENS  # vLLM rounds every sequence up, and keeps one block to itself
    free = psutil.virtual_memory().available
    if each * (least + blocks) > free:
        raise CapacityError(
            f"the key-value cache of one sequence of {least} tokens takes "
            f"{each * least / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free: lower "
            "prompts.max_tokens or max_new_tokens"
        )
    wanted = each * (tokens + blocks * max(1, tokens // least))
    return int(max(each * (least + blocks), min(wanted, CPU_SHARE * free)))
