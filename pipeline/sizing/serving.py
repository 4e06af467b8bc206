"""Memory of a model that samples or scores: weights, keys and values, activations, logits. Pure."""

from pipeline.sizing.learning import Lengths
from pipeline.sizing.parts import GIB, MIB, Parts
from pipeline.sizing.shape import Shape
from schemas.config.engines import EngineSection

CPU_TOKENS = 1024
"""Tokens that the hf engine scores at once on a CPU."""

LIVE_HIDDEN, LIVE_ATTENTION, LIVE_INNER = 6, 2, 3
"""Numbers that a layer holds of a token while it computes, per unit of these widths."""

LOGITS = 3
"""Chunks of logits that exist at once: the logits, their log-probabilities, what sorts them."""

ROOM = 1.125
"""Keys and values have this room over what they hold, as they grow."""

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Number format → bytes."""


def hf_parts(
    shape: Shape,
    section: EngineSection,
    lengths: Lengths,
    *,
    dtype: str,
    samples: bool,
    on_gpu: bool,
) -> Parts:
    """Return what the hf engine takes on its device.

    Args:
        shape: of the model.
        section: of the stage.
        lengths: of the sequences.
        dtype: number format of the weights.
        samples: whether sequences are sampled, else scored.
        on_gpu: whether the device is a GPU.
    """
    size, budget = SIZES[dtype], section.batch_tokens
    if not samples and not on_gpu:
        budget = min(budget, CPU_TOKENS)
    rows, cache = max(1, min(budget // lengths.whole, lengths.rows)), 0.0
    tokens, logit_rows = rows * lengths.whole, rows * lengths.response
    if samples:
        cache = tokens * shape.cached * size * ROOM
        tokens, logit_rows = rows * lengths.prompt, rows
    layer = LIVE_HIDDEN * shape.hidden + LIVE_ATTENTION * shape.attention + LIVE_INNER * shape.inner
    logits = min(section.logit_chunk_mb * MIB, logit_rows * shape.vocabulary * 4)
    parts = {
        "weights": shape.parameters * size,
        "keys and values": round(cache),
        "activations": tokens * layer * size,
        "logits": round(LOGITS * logits),
    }
    return {what: size for what, size in parts.items() if size}


def vllm_parts(shape: Shape, section: EngineSection, lengths: Lengths, *, dtype: str) -> Parts:
    """Return what vLLM needs of each GPU at the least: weights, one sequence, a batch's work.

    It takes all of `gpu_memory_utilization`, and gives keys and values what is left.
    """
    size, vllm = SIZES[dtype], section.vllm
    ways = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    tokens = max(lengths.whole, section.batch_tokens)
    layer = LIVE_HIDDEN * shape.hidden + (
        LIVE_ATTENTION * shape.attention + LIVE_INNER * shape.inner
    ) / max(1, vllm.tensor_parallel_size)
    kept = shape.cached * size / ways
    cache = kept * lengths.whole if vllm.kv_cache_gb is None else vllm.kv_cache_gb * GIB
    return {
        "weights": round(shape.parameters * size / ways),
        "keys and values": round(cache),
        "activations": round(tokens * layer * size),
        "logits": round(section.logit_chunk_mb * MIB),
    }


def sequences_at_once(
    shape: Shape, section: EngineSection, lengths: Lengths, *, dtype: str, left: float
) -> int:
    """Return how many of the longest sequences vLLM works on at once with what is left of a GPU."""
    ways = section.vllm.tensor_parallel_size * section.vllm.pipeline_parallel_size
    each = max(1.0, lengths.whole * shape.cached * SIZES[dtype] / ways)
    return min(section.vllm.max_num_seqs, int(left / each))
