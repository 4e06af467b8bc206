"""Memory of a student that learns: weights, gradients, optimizer, activations, logits. Pure.

Counted for DeepSpeed as `pipeline/learner/settings.py` sets it up; held against measured peaks in
tests/sizing.
"""

from dataclasses import dataclass

from pipeline.sizing.parts import MIB, Parts, total
from pipeline.sizing.shape import Shape
from schemas.config.train import TrainSection

ADAM = 8
"""Bytes of a parameter that Adam keeps: two moments in float32."""

BUCKET = 500_000_000
"""Gradients that DeepSpeed has room for on a GPU, to sum them over processes: its own default."""

SAVED_HIDDEN, SAVED_ATTENTION, SAVED_INNER = 10, 4, 4
"""Numbers that a layer keeps of a token for its backward pass, per unit of these widths."""

PROBE_ROWS = 8
"""Sequences whose whole logits are compared at the end of a round."""

LOGITS = 2
"""Chunks of logits that exist at once: the logits, and what their gradient takes."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a run's longest sequences, and how many of them a unit has."""

    prompt: int
    response: int
    rows: int

    @property
    def whole(self) -> int:
        """Return the tokens of the longest sequence."""
        return self.prompt + self.response


def learning_bytes(parameters: int, *, processes: int, low: bool = True, stage: int = 2) -> Parts:
    """Return what all weights that learn take on each device.

    Args:
        parameters: of the student.
        processes: that learn together.
        low: whether it computes in bfloat16, with float32 masters.
        stage: of ZeRO.
    """
    count = max(processes, 1)
    stage = max(stage, 2) if low else stage
    weights = parameters * (2 if low else 4) / (count if stage == 3 else 1)
    gradients = 4 * parameters / (count if stage >= 2 else 1)
    # ZeRO keeps its own float32 copy of what it splits, of float32 weights too
    optimizer = (ADAM + (4 if stage else 0)) * parameters / (count if stage else 1)
    return {
        "weights": round(weights),
        "gradients": round(gradients),
        "optimizer": round(optimizer),
    }


def rough_bytes(learns: int, reads: int, *, processes: int, on_gpu: bool, adapted: bool) -> float:
    """Return what a device needs where nothing is known but parameters: no activations, no logits.

    Args:
        learns: parameters of the student.
        reads: of the teacher.
        processes: that learn together.
        on_gpu: whether models compute in 16 bits, else in 32.
        adapted: whether an adapter learns.
    """
    if not on_gpu:
        learning = learning_bytes(learns, processes=1, low=False, stage=0)
        kept = total(learning) - learning["gradients"] + 8 * learns  # as it is published
        return max(kept, reads * 4)
    own = learns * 3 if adapted else total(learning_bytes(learns, processes=processes))
    return max(own, reads * 2)


def learner_parts(
    shape: Shape, train: TrainSection, lengths: Lengths, *, on_gpu: bool
) -> tuple[Parts, Parts]:
    """Return what a process takes on its device, and what the optimizer takes on the host.

    Args:
        shape: of the student.
        train: how it learns.
        lengths: of the sequences.
        on_gpu: whether the device is a GPU.
    """
    parts, beside = _held(shape, train), Parts()
    if train.offload_optimizer and on_gpu and train.lora is None:
        beside["optimizer"] = parts.pop("optimizer")
    step = _step(shape, train, lengths, on_gpu=on_gpu)
    if on_gpu and (train.zero_stage or train.dtype == "bfloat16"):
        step["gradient buckets"] = BUCKET * 4
    check = {"logits of the last check": 2 * _probe_logits(shape, lengths)}
    if not on_gpu:
        check |= published_parts(shape, train)
    gradients = parts.pop("gradients", 0)  # of a step alone
    step = {"gradients": gradients, **step} if gradients else step
    loaded = {"the student as it is loaded": loaded_bytes(shape, train)}
    return max(parts | step, parts | check, loaded, key=total), beside


def loaded_bytes(shape: Shape, train: TrainSection) -> int:
    """Return what a process holds of a student before it is split: float32, if all of it learns."""
    return shape.parameters * (2 if train.lora is not None and train.dtype == "bfloat16" else 4)


def published_parts(shape: Shape, train: TrainSection) -> Parts:
    """Return what the host holds of a student that is published: a copy, and what is compared."""
    learned = shape.parameters if train.lora is None else train.lora.rank * shape.linear
    return {"the student to be published": 4 * (learned + shape.parameters)}


def _held(shape: Shape, train: TrainSection) -> Parts:
    low = train.dtype == "bfloat16"
    if train.lora is None:
        return learning_bytes(
            shape.parameters, processes=train.num_processes, low=low, stage=train.zero_stage
        )
    adapter = learning_bytes(train.lora.rank * shape.linear, processes=1, low=low)
    return {"weights": shape.parameters * (2 if low else 4), "adapter": total(adapter)}


def _step(shape: Shape, train: TrainSection, lengths: Lengths, *, on_gpu: bool) -> Parts:
    """Return what a micro-batch takes beside what is held."""
    rows = max(1, train.sequences_per_step // train.num_processes) * lengths.whole
    tokens = max(lengths.whole, min(train.micro_batch_tokens, rows))
    size = 2 if train.dtype == "bfloat16" else 4
    layer = (
        SAVED_HIDDEN * shape.hidden + SAVED_ATTENTION * shape.attention + SAVED_INNER * shape.inner
    )
    kept = shape.layers * layer
    if train.activation_checkpointing:
        kept = shape.layers * shape.hidden + layer
    chunk = train.logit_chunk_mb or (1024.0 if on_gpu else 128.0)
    logits = min(chunk * MIB, tokens * shape.vocabulary * 4)
    return {
        "activations": tokens * kept * size,
        "logits": round(LOGITS * logits),
        "gradient of the head": shape.vocabulary * shape.hidden * 4,
    }


def _probe_logits(shape: Shape, lengths: Lengths) -> int:
    return PROBE_ROWS * lengths.whole * shape.vocabulary * 4
