"""Settings of the learner: DeepSpeed's configuration, learning rate, decay, seed of dropout."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.randomness import derived_seed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LearnerSettings:
    """What an engine is built from."""

    train: TrainSection
    loss: LossConfig
    by_row: bool = False
    """Whether the reverse KL of the student itself is asked for, beside that of its samples."""


def engine_config(settings: LearnerSettings) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a learner.

    With bfloat16 the stage is at least 2: below it DeepSpeed sums micro-batches in bfloat16, and at
    stage 0 it begins with a step on zero gradients, which spoils Adam's bias correction. Steps have
    different numbers of micro-batches, so that the learner itself says which is a step's last, and
    DeepSpeed divides no loss by their number.
    """
    train = settings.train
    low = train.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": max(train.zero_stage, 2) if low else train.zero_stage}
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": train.device != "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": low},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }


def decayed(train: TrainSection) -> Literal["all", "matrices"]:
    """Return which weights decay; an adapter is made of matrices alone."""
    every = train.decay_all or train.weight_decay == 0.0 or train.lora is not None
    return "all" if every else "matrices"


def chunk_mb(train: TrainSection, device: str) -> float:
    """Return the MiB of logits that exist at once on a device."""
    if train.logit_chunk_mb is not None:
        return train.logit_chunk_mb
    return 128.0 if device == "cpu" else 1024.0


def weight_groups(module: "nn.Module", train: TrainSection) -> list[dict[str, Any]]:
    """Return what AdamW learns, in groups that decay alike."""
    from torch import nn

    learned = [weight for weight in module.parameters() if weight.requires_grad]
    tables = (m.weight for m in module.modules() if isinstance(m, nn.Embedding))
    kept = {id(table) for table in tables} | {id(w) for w in learned if w.dim() < 2}
    if decayed(train) == "all":
        kept = set()
    groups = [
        {"params": [w for w in learned if id(w) not in kept], "weight_decay": train.weight_decay},
        {"params": [w for w in learned if id(w) in kept], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Return the learning rate of an optimizer step of the run, counted from 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant" or train.decay_steps is None:
        return train.learning_rate
    span = max(1, train.decay_steps - train.warmup_steps)
    done = min(1.0, (step - train.warmup_steps) / span)
    shape = 1 - done if train.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return train.learning_rate * (train.decay_floor + (1 - train.decay_floor) * shape)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make what a step leaves out at random depend on seed, step and process alone."""
    import torch

    number = derived_seed("dropout", seed, step, rank)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # the other notes where it was called from, for each kind of device that is not there
        torch.default_generator.manual_seed(number)
