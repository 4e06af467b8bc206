"""`[train]`: the learner, and the adapter that it trains."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.config.section import (
    Few,
    Megabytes,
    Natural,
    Positive,
    Section,
    Text,
    chunk_in_bytes,
    later,
    tuning,
)


class LoraSection(Section):
    """`[train.lora]`: a low-rank adapter learns and the model's own weights stay as they are."""

    rank: Few
    """Rank of the adapter: each of its layers has rank × (inputs + outputs) weights."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)]
    """Scale of the adapter: what it adds to a layer is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1)]
    """Names of the linear layers that get an adapter, such as `["q_proj", "v_proj"]`; `all-linear`
    takes every one but the language-model head."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's inputs in training."""


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A decay rate: 1 would never take anything in."""


class TrainSection(Section):
    """`[train]`: the DeepSpeed learner."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1000.0)]
    """Peak learning rate."""
    sequences_per_step: Positive
    """Sequences in one optimizer step, over all processes. What an epoch has left over joins its
    last step where it is less than half of one."""
    epochs: Few = 1
    """Passes over a round's sequences."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after warm-up, over optimizer steps of the whole run."""
    warmup_steps: Natural = 0
    """Optimizer steps of linear warm-up at the start of the run."""
    decay_steps: Positive | None = None
    """Optimizer steps until `linear` or `cosine` reaches its floor; required for these two."""
    decay_floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW betas: decay rates of the two moments."""
    eps: Annotated[float, Field(ge=1e-37, le=1.0)] = 1e-8
    """AdamW epsilon."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1e4)] = 0.0
    """AdamW decoupled weight decay."""
    decay_all: bool = later(False)
    """Decay every weight. Without it norms, biases and embeddings, and a head that is tied to them,
    keep their size: what has fewer than two dimensions, or is looked up by id."""
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1e30)] = 1.0
    """Gradient clipping: the global norm above which gradients are scaled down."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of forward and backward; bfloat16 keeps float32 master weights."""
    max_staleness: Natural = 0
    """Rounds by which a row's sampling policy may lag; 0 is on-policy. Older rows are counted and
    not trained on."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = tuning(0)
    """ZeRO stage of DeepSpeed: 0 splits nothing, 1 optimizer state, 2 + gradients, 3 + weights."""
    offload_optimizer: bool = tuning(False)
    """Keep optimizer state in CPU memory (needs ZeRO 1 or above)."""
    activation_checkpointing: bool = tuning(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_processes: Annotated[int, Field(gt=0, le=1024)] = tuning(1)
    """Processes that `opd train` starts on this machine, one per GPU; 1 also under torchrun."""
    device: Literal["auto", "cpu", "cuda"] = tuning("auto")
    """Torch device: `auto`, `cpu` or `cuda`."""
    micro_batch_tokens: Positive = tuning(16384)
    """Tokens per micro-batch and process, padding included; lower it when memory runs out."""
    packing: Literal["auto", "on", "off"] = tuning("auto")
    """Rows end to end without padding: `auto` where a probe shows that each row of this student has
    the numbers that it has alone; `on` refuses a student that it does not, `off` pads rows."""
    logit_chunk_mb: Megabytes | None = tuning(None)
    """MiB of float32 logits that exist at once; the gradient of the loss takes half as much more.
    Default: 128 on a CPU, 1024 on a GPU, where each chunk is a pass over the head's gradient."""
    shuffle_shards: Positive = 16
    """Shards whose rows are shuffled together, and held in memory at once."""
    save_steps: Natural = tuning(0)
    """Optimizer steps between saved states that a round resumes from; 0 saves at its end only."""
    verify_tolerance: Annotated[float, Field(gt=0.0, le=1e6)] = tuning(1e-3)
    """Largest difference in nats between the learner and its reloaded checkpoint (float32)."""
    max_rollout_kl: Annotated[float, Field(gt=0.0, le=1e6)] | None = tuning(None)
    """Largest KL of the rollout to the learner before a round's first update, in nats per token.
    Above it the round stops. Default 1e-6 in float32, else 0.05."""
    model_dropout: bool = later(False)
    """Learn with the dropout and the router noise of the model's own `config.json`. Without it the
    learner computes what the rollout sampled from; `lora.dropout` is a key of its own."""
    lora: LoraSection | None = later(None)
    """The LoRA adapter that learns; without this table all weights learn."""

    _in_bytes = model_validator(mode="before")(chunk_in_bytes)

    @model_validator(mode="after")
    def _check(self) -> "TrainSection":
        if self.schedule != "constant" and self.decay_steps is None:
            raise ValueError(f"schedule = {self.schedule!r} needs decay_steps")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage of 1 or above")
        return self
