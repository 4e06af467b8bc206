"""The configuration of a run: one TOML file becomes one frozen `RunConfig`.

Owns every key, its unit, its default and its checks. Unknown keys are refused. Keys that change
results have no default. Fields made with `tuning` affect speed or place only, never results.
"""

import os
import posixpath
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from schemas.enginesections import EngineSection
from schemas.gatesection import GateSection
from schemas.lorasection import LoraSection
from schemas.section import Dtype, Fraction, Name, Positive, Section, StopTexts, later, tuning


class RunSection(Section):
    """`[run]`: what this run is called, where it lives and how long it goes on."""

    name: Name
    """Name of the run; its objects live under `runs/<name>/` of the root."""
    root: str = tuning(...)
    """Folder or URL of the store: a path, `file://…` or `s3://bucket/prefix`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Root of every random choice: prompt order, samples, batch order."""
    rounds: Positive = tuning(...)
    """Rounds of rollout, score and train that `opd run` brings to an end."""


class StudentSection(Section):
    """`[student]`: the model that learns."""

    model: str
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub id of a model."""
    revision: str | None = None
    """Immutable revision (commit hash) of a hub id; required for one, refused for a folder."""
    base: str | None = later(None)
    """Folder or hub id of the model that an adapter belongs to; default: the one that its
    adapter_config.json names."""
    base_revision: str | None = later(None)
    """Immutable revision (commit hash) of a `base` that is a hub id."""
    dtype: Dtype = "float32"
    """Number format of the student while it samples."""
    sft_teacher: str | None = None
    """Teacher that made the student's supervised start; scoring with another is refused."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class TeacherSection(Section):
    """`[teachers.NAME]`: a model that scores."""

    model: str
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub id of a model."""
    revision: str | None = None
    """Immutable revision (commit hash) of a hub id; required for one, refused for a folder."""
    base: str | None = later(None)
    """Folder or hub id of the model that an adapter belongs to; default: the one that its
    adapter_config.json names."""
    base_revision: str | None = later(None)
    """Immutable revision (commit hash) of a `base` that is a hub id."""
    scores: Name | None = None
    """Name or key of a scorer of this root that has scored the samples already, such as one that
    `opd cache reprocess` made: its scores are used and the teacher is not loaded for scoring."""
    dtype: Dtype = "float32"
    """Number format of the teacher while it scores; part of the identity of its scores."""
    tokenizer_check: Literal["content", "vocabulary"] = "content"
    """`content`: everything must equal the student's tokenizer. `vocabulary`: ids must mean the
    same text, special-token roles (end of sequence, padding) may differ."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class PromptsSection(Section):
    """`[prompts]`: where prompts come from."""

    train: str
    """JSONL or Parquet file (path or `s3://…`) of the prompts to sample from."""
    eval: str | None = None
    """JSONL or Parquet file of held-out prompts with a `reference`, for `opd eval`."""
    max_tokens: Positive
    """Longest prompt in tokens; a longer one is an error or skipped, never cut."""
    on_error: Literal["error", "skip"] = "error"
    """What a bad prompt does: stop with its file and line, or be counted and left out."""
    add_special_tokens: bool = False
    """Let the tokenizer add its own start tokens to `prompt` text; chat templates do so anyway."""
    chat_template_kwargs: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Extra variables of the chat template, such as `enable_thinking`."""


class RolloutSection(EngineSection):
    """`[rollout]`: how the student samples."""

    prompts_per_round: Positive
    """Prompts drawn in each round, without repetition inside an epoch over the file."""
    samples_per_prompt: Positive
    """Responses sampled for each prompt."""
    max_new_tokens: Positive
    """Longest response in tokens, stop token included."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)]
    """Sampling temperature; 1.0 samples the student's own distribution."""
    top_p: Fraction
    """Nucleus of the sampled distribution; 1.0 keeps all, and is what importance weights need."""
    top_k: Annotated[int, Field(ge=0)]
    """Ids kept before sampling; 0 keeps all, and is what importance weights need."""
    stop_token_ids: tuple[int, ...] | None = None
    """Ids that end a response; default: every end id that the tokenizer and the model name."""
    stop_strings: StopTexts = later(())
    """Texts that end a response too, with the token that completes one of them; at most 16, of at
    most 256 characters. `[eval]` ends its responses at them as well."""
    candidates: Annotated[int, Field(ge=0, le=4096)] = 0
    """Most likely ids of the student that are recorded at each position; teachers score them too,
    for objectives weighted by the student."""
    prompts_per_unit: Positive = 256
    """Prompts per unit of work: one shard, one commit, what a crash can lose."""


class ScoreSection(EngineSection):
    """`[score]`: what the teacher's pass keeps of each position."""

    k: Positive
    """Top-k ids and log-probabilities per position; where `top_p` is set, at most so many."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Probability mass at which a position's top-k ends, so that a peaked one keeps few ids; the
    tail has the rest. Default, as 1.0: `k` ids at every position."""
    min_k: Positive = 1
    """Fewest ids of a position where `top_p` is set."""
    tail_buckets: Annotated[int, Field(gt=0, le=65536)] = 1
    """Parts, by a hash of the id, in which the mass outside the top-k is kept."""
    draws: Annotated[int, Field(ge=0, le=65536)] = 0
    """Ids drawn from the teacher's whole distribution at each position: unbiased sparse targets."""
    noise_tolerance: Annotated[float, Field(gt=0.0)] | None = tuning(None)
    """Largest mean difference in nats between scores of the same tokens alone, in a batch and in
    another order; above it scoring stops before it begins. Default 0.001 in float32, else 0.1."""
    codec: Literal["typed-v1", "packed-v1"] = "typed-v1"
    """Form of stored scores: `typed-v1` opens in any Parquet reader, `packed-v1` is smallest."""
    reuse: Literal["exact", "same-weights"] = "exact"
    """Whose stored scores are used: `exact`, those of this very scorer. `same-weights`, also those
    that these weights gave under another engine, version, dtype or codec; the records name them."""

    @model_validator(mode="after")
    def _check(self) -> "ScoreSection":
        if self.min_k > self.k:
            raise ValueError(f"min_k = {self.min_k} is above k = {self.k}")
        if self.top_p in (None, 1.0) and self.min_k != 1:
            raise ValueError("min_k needs top_p")
        if self.engine == "server" and (self.tail_buckets > 1 or self.draws):
            raise ValueError(
                "tail_buckets and draws need full logits, which no server gives: set score.engine "
                "to 'vllm' or 'hf'"
            )
        if self.vllm.prefix_caching:
            raise ValueError("vllm.prefix_caching would leave positions without a score")
        if self.vllm.keep_between_stages:
            raise ValueError(
                "vllm.keep_between_stages is for [rollout.vllm] and [eval.vllm]: a teacher's "
                "engine ends with its stage"
            )
        return self


class LossConfig(Section):
    """`[loss]`: the objective over teacher support and tail bucket."""

    kind: Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"]
    """`forward_kl` = KL(teacher‖student), `reverse_kl` = KL(student‖teacher), `jsd` = generalised
    Jensen-Shannon, `policy_gradient` = sampled token, advantage log p_teacher − log q_student."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """`jsd` only: 0 is the forward KL, 1 the reverse KL."""
    importance: Literal["none", "token"] = "token"
    """`policy_gradient` only: weight by current over sampling probability of the token, or not."""
    importance_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """`policy_gradient` only: largest importance weight."""
    advantage_clip: Annotated[float, Field(gt=0.0)] | None = None
    """`policy_gradient` only: clip the advantage to ± this many nats."""
    teacher_logprob_floor: Annotated[float, Field(lt=0.0)] = -30.0
    """Lowest teacher log-probability in student-weighted terms, nats; hits are counted."""


class TrainSection(Section):
    """`[train]`: the DeepSpeed learner."""

    learning_rate: Annotated[float, Field(gt=0.0)]
    """Peak learning rate."""
    sequences_per_step: Positive
    """Sequences in one optimizer step, over all processes."""
    epochs: Positive = 1
    """Passes over a round's sequences."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, over optimizer steps of the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up at the start of the run."""
    decay_steps: Positive | None = None
    """Optimizer steps until `linear` or `cosine` reach their floor; required for these."""
    decay_floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decay rates."""
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """AdamW denominator offset."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Global gradient norm above which gradients are scaled down."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of forward and backward; bfloat16 keeps float32 master weights."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Rounds by which a row's sampling policy may lag; older rows are refused and counted."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = tuning(0)
    """DeepSpeed ZeRO stage: splits nothing (0), optimizer state, + gradients, + parameters (3)."""
    offload_optimizer: bool = tuning(False)
    """Keep optimizer state in CPU memory (needs ZeRO 1 or above)."""
    activation_checkpointing: bool = tuning(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_processes: Positive = tuning(1)
    """Processes that `opd train` starts on this machine (one per GPU); 1 also under torchrun."""
    device: str = tuning("auto")
    """Torch device: `auto`, `cpu` or `cuda`."""
    micro_batch_tokens: Positive = tuning(16384)
    """Tokens per micro-batch and process, padding included; lower it when memory runs out."""
    logit_chunk_tokens: Positive = tuning(256)
    """Positions whose full-vocabulary logits exist at once."""
    shuffle_shards: Positive = 16
    """Shards whose rows are shuffled together, and held in memory at once."""
    save_steps: Annotated[int, Field(ge=0)] = tuning(0)
    """Optimizer steps between resumable saves inside a round; 0 saves at its end only."""
    verify_tolerance: Annotated[float, Field(gt=0.0)] = tuning(1e-3)
    """Largest difference in nats between the learner and its reloaded checkpoint (float32)."""
    lora: LoraSection | None = later(None)
    """The adapter that learns; without it all weights do."""

    @model_validator(mode="after")
    def _check(self) -> "TrainSection":
        if self.schedule != "constant" and self.decay_steps is None:
            raise ValueError(f"schedule = {self.schedule!r} needs decay_steps")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage of 1 or above")
        return self


class EvalSection(EngineSection):
    """`[eval]`: held-out prompts, sampled and graded after each round."""

    reward: str
    """Grader: `exact_match`, `last_number`, `regex` or a Python `module:function`."""
    pattern: str | None = None
    """`regex` only: its first group (or the whole match) is compared with the reference."""
    require_stop: bool = True
    """Count a response that did not end by itself as wrong."""
    max_prompts: Positive | None = None
    """Held-out prompts to use, from the start of the file; default all."""
    samples_per_prompt: Positive = 1
    """Responses per prompt; more than one needs a temperature above 0."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Sampling temperature; 0 takes the most likely token."""
    top_p: Fraction = 1.0
    """Nucleus of the sampled distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Ids kept before sampling; 0 keeps all."""
    max_new_tokens: Positive | None = None
    """Longest response in tokens; default that of `[rollout]`."""
    every_rounds: Positive = tuning(1)
    """`opd run` evaluates after every so many rounds, and after the last."""
    teachers: bool = tuning(True)
    """Also grade the teachers, once, as the mark to reach."""

    @model_validator(mode="after")
    def _check(self) -> "EvalSection":
        builtin = ("exact_match", "last_number", "regex")
        if self.reward not in builtin and self.reward.count(":") != 1:
            raise ValueError(
                f"reward = {self.reward!r} is none of {', '.join(builtin)} or 'module:function'"
            )
        if (self.reward == "regex") != (self.pattern is not None):
            raise ValueError("pattern belongs to reward = 'regex', which needs it")
        if self.samples_per_prompt > 1 and self.temperature == 0.0:
            raise ValueError("samples_per_prompt above 1 needs a temperature above 0")
        return self


class StorageSection(Section):
    """`[storage]`: how the store is spoken to; credentials come from `AWS_*` variables only."""

    retry_s: Annotated[float, Field(gt=0.0)] = tuning(60.0)
    """Seconds for which a failing request is repeated, with growing pauses, before giving up."""
    connect_timeout_s: Annotated[float, Field(gt=0.0)] = tuning(5.0)
    """Seconds to wait for a connection."""
    read_timeout_s: Annotated[float, Field(gt=0.0)] = tuning(60.0)
    """Seconds to wait for a reply."""
    lease_s: Annotated[float, Field(gt=0.0)] = tuning(60.0)
    """Seconds after which the unit of a worker that fell silent is taken over by another one."""
    max_connections: Positive = tuning(64)
    """Connections held to an object store."""
    addressing_style: Literal["auto", "path", "virtual"] = tuning("auto")
    """Where the bucket name goes in S3 requests; many self-hosted stores need `path`."""
    checksum_calculation: Literal["when_supported", "when_required"] = tuning("when_supported")
    """S3 checksum trailers; `when_required` for stores that refuse or corrupt them."""


class RunConfig(Section):
    """Everything that defines a run."""

    run: RunSection
    """Name, root, seed and rounds."""
    student: StudentSection
    """The model that learns."""
    teachers: Annotated[dict[Name, TeacherSection], Field(min_length=1)]
    """The models that score, by name; a prompt's `teacher` column picks one."""
    prompts: PromptsSection
    """Where prompts come from."""
    rollout: RolloutSection
    """How the student samples."""
    score: ScoreSection
    """What is kept of the teacher."""
    loss: LossConfig
    """The objective."""
    train: TrainSection
    """The learner."""
    eval: EvalSection | None = None
    """Grading of held-out prompts; without it nothing is graded."""
    gate: GateSection | None = tuning(None)
    """When rounds end early, and when they must not go on."""
    storage: StorageSection = Field(default_factory=StorageSection)
    """How the store is spoken to."""

    _base: str = PrivateAttr(default_factory=os.getcwd)

    @property
    def default_teacher(self) -> str:
        """Name of the teacher for prompts that name none: the first in the file."""
        return next(iter(self.teachers))

    def resolve(self, location: str) -> str:
        """Return a path of the TOML, which starts from its folder, as an absolute one or a URL."""
        if "://" in location:
            return location
        path = Path(location).expanduser()
        scheme, separator, folder = self._base.rpartition("://")
        if separator and not path.is_absolute():
            return f"{scheme}://{posixpath.normpath(posixpath.join(folder, location))}"
        return str((self._base / path).resolve())

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        truncated = self.rollout.top_p < 1.0 or self.rollout.top_k > 0
        weighted = self.loss.kind == "policy_gradient" and self.loss.importance == "token"
        if weighted and truncated:
            raise ValueError(
                "importance weights need an untruncated rollout: set rollout.top_p = 1.0 and "
                "rollout.top_k = 0, or loss.importance = 'none'"
            )
        if self.loss.kind == "policy_gradient" and not weighted and self.rollout.temperature != 1.0:
            raise ValueError(
                "policy_gradient with importance = 'none' takes samples for the student's own "
                "distribution: set rollout.temperature = 1.0, or loss.importance = 'token'"
            )
        if self.eval is not None and self.prompts.eval is None:
            raise ValueError("[eval] needs prompts.eval, a file of held-out prompts")
        graded = self.gate and (self.gate.target_accuracy or self.gate.max_accuracy_drop)
        if graded and self.eval is None:
            raise ValueError("[gate] waits for an accuracy, which needs an [eval]")
        self._check_servers()
        known = self.student.sft_teacher
        if known is not None and known not in self.teachers:
            raise ValueError(f"student.sft_teacher = {known!r} is not one of {list(self.teachers)}")
        return self

    def _check_servers(self) -> None:
        if self.score.engine == "server" and self.rollout.candidates:
            raise ValueError(
                "rollout.candidates are scored from full logits, which no server gives: set "
                "score.engine to 'vllm' or 'hf'"
            )
        for name, section in (("rollout", self.rollout), ("eval", self.eval)):
            asked = section is not None and section.engine == "server" and section.server.urls
            if section is not None and asked and "{policy}" not in (section.server.model or ""):
                raise ValueError(
                    f"{name}.server.urls needs {name}.server.model with {{policy}} in it: the "
                    "student changes in every round, and the name says which one a server holds"
                )
