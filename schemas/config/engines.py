"""The tables that say which engine runs a model, and what it may use."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, model_validator

from schemas.config.section import (
    DEVICE_PATTERN,
    Few,
    Fraction,
    Megabytes,
    Positive,
    Seconds,
    Section,
    Text,
    chunk_in_bytes,
    tuning,
)
from schemas.foreign import shown

EngineName = Literal["hf", "vllm", "server"]

NAME_OF_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


Device = Annotated[str, StringConstraints(pattern=DEVICE_PATTERN)]
"""A device of torch that a model can run on."""


def _check_server(url: str) -> None:
    """Make sure that a text is the base URL of a server; what may be a secret is not repeated.

    Raises:
        ValueError: it is not.
    """
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "urls: a URL holds a user, a password or parameters; name the key's variable in "
            "api_key_env instead"
        )
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        good = False
    if not good:
        raise ValueError(f"urls: {shown(url)} is not the base URL of a server: http://host:port")


class VllmSection(Section):
    """`[rollout.vllm]`, `[score.vllm]`, `[eval.vllm]`: what vLLM may use."""

    tensor_parallel_size: Few = tuning(1)
    """GPUs that each layer is split over."""
    pipeline_parallel_size: Few = tuning(1)
    """Groups of GPUs that the layers are split over."""
    data_parallel_size: Few = tuning(1)
    """Copies of the model in a server that `engine = "server"` starts; `vllm` itself has one."""
    gpu_memory_utilization: Fraction = tuning(0.9)
    """Share of a GPU's memory for weights, activations and KV cache."""
    kv_cache_gb: Annotated[float, Field(gt=0.0, le=1e6)] | None = tuning(None)
    """Memory of the KV cache, GiB. Default: on a GPU what `gpu_memory_utilization` leaves;
    on a CPU what `max_num_seqs` sequences need, at most a quarter of the free memory."""
    max_num_seqs: Few = tuning(256)
    """Sequences that are computed at once."""
    enforce_eager: bool = tuning(False)
    """Skip compilation and CUDA graphs: starts sooner, runs slower. Always so on a CPU."""
    prefix_caching: bool = tuning(False)
    """Compute a prompt once for all its samples. A sample may then depend on its neighbours in the
    last bits. Never used for scores."""
    keep_between_stages: bool = tuning(False)
    """`[rollout.vllm]` and `[eval.vllm]` only: `opd run` keeps the student's engine and its memory
    between stages. After training it loads the new weights and checks them."""


class ServerSection(Section):
    """`[rollout.server]`, `[score.server]`, `[eval.server]`: where the `server` engine asks."""

    urls: Annotated[tuple[Text, ...], Field(max_length=1024)] = tuning(())
    """Base URLs of vLLM servers, such as `http://10.0.0.5:8000`; empty: `opd` starts one on this
    machine with the settings of the `vllm` table beside."""
    model: Text | None = tuning(None)
    """Name under which the servers list the model; default: the only one that they list. For
    rollout and eval `{policy}` in it stands for the version of the weights that are to sample."""
    api_key_env: str | None = tuning(None)
    """Name of the environment variable that holds the servers' API key."""
    concurrency: Few = tuning(32)
    """Requests that each server works on at once."""
    timeout_s: Seconds = tuning(600.0)
    """Seconds to wait for a reply."""
    retry_s: Seconds = tuning(60.0)
    """Seconds for which a request that fails is repeated, with growing pauses, on any server."""

    @model_validator(mode="after")
    def _check(self) -> "ServerSection":
        for url in self.urls:
            _check_server(url)
        if self.api_key_env is not None and not re.fullmatch(NAME_OF_VARIABLE, self.api_key_env):
            raise ValueError(  # and does not repeat it, for it may be the key itself
                "api_key_env is not the name of an environment variable, such as TEACHER_KEY"
            )
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: a URL is listed twice; raise concurrency instead")
        return self


class EngineSection(Section):
    """Fields that `[rollout]`, `[score]` and `[eval]` share: the engine and its batches."""

    engine: EngineName = "hf"
    """Engine that runs the model: `hf` (transformers, CPU or GPU), `vllm` (vLLM's offline engine;
    `pip install 'opd[vllm]'`) or `server` (vLLM's HTTP servers, elsewhere or started here)."""
    device: Device = tuning("auto")
    """Torch device of `hf`: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, … `vllm`
    takes the GPUs that CUDA_VISIBLE_DEVICES shows."""
    batch_tokens: Positive = tuning(32768)
    """Tokens per forward pass, padding included; it is halved when memory runs out."""
    logit_chunk_mb: Megabytes = tuning(128.0)
    """Memory of the full-vocabulary logits that exist at once, MiB."""
    vllm: VllmSection = Field(default_factory=VllmSection)
    """What the `vllm` engine, or a server that `opd` starts, may use."""
    server: ServerSection = Field(default_factory=ServerSection)
    """Where the `server` engine asks."""

    @property
    def response_limit(self) -> int | None:
        """Return the most tokens of a response; None where the section sets no limit."""
        return None

    @property
    def for_one_stage(self) -> Self:
        """Return the section for an engine that ends with its stage."""
        vllm = self.vllm.model_copy(update={"keep_between_stages": False})
        return self.model_copy(update={"vllm": vllm})

    _in_bytes = model_validator(mode="before")(chunk_in_bytes)

    @model_validator(mode="after")
    def _check_engine(self) -> "EngineSection":
        if self.engine == "vllm" and self.vllm.data_parallel_size > 1:
            raise ValueError(
                "vllm.data_parallel_size above 1 needs engine = 'server'; with 'vllm', start "
                "several workers of the stage instead"
            )
        if self.engine != "vllm" and self.vllm.keep_between_stages:
            raise ValueError(
                f"vllm.keep_between_stages needs engine = 'vllm', and it is {self.engine!r}: "
                "remove the key"
            )
        return self
