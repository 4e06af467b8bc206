"""What memory each stage of a run needs, beside what the devices have. Pure.

Promises: an estimate, whose assumptions docs/scaling.md says; where a model is not known, neither
is what it needs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.sizing.learning import Lengths, learner_parts, loaded_bytes, published_parts
from pipeline.sizing.machine import Machine
from pipeline.sizing.parts import Parts, total
from pipeline.sizing.serving import SIZES, hf_parts, sequences_at_once, vllm_parts
from pipeline.sizing.shape import Shape
from schemas.config.engines import EngineSection
from schemas.config.run import RunConfig, signal_of
from schemas.keys import STUDENT

ID_AND_VALUE = 8
"""Bytes of an id and its log-probability, as rows are read."""

ADVICE = {
    "hf": "lower batch_tokens",
    "vllm": "raise vllm.tensor_parallel_size",
    "train": "lower train.micro_batch_tokens, recompute activations "
    "(train.activation_checkpointing), split more (train.zero_stage, train.num_processes) or "
    "train an adapter ([train.lora])",
    "host": "lower train.shuffle_shards or rollout.prompts_per_unit",
}


@dataclass(frozen=True)
class Need:
    """What a stage takes of a memory."""

    stage: str
    memory: Literal["GPU", "CPU"]
    """That of each GPU, or that of the machine."""
    parts: Parts
    held: int | None
    """Bytes that there are; None where no such device was found."""
    advice: str
    note: str = ""

    @property
    def bytes(self) -> int:
        """Return what it takes in all."""
        return total(self.parts)

    @property
    def share(self) -> float | None:
        """Return the share of what there is that it takes; None where there is no such device."""
        return None if not self.held else self.bytes / self.held


def needs(
    config: RunConfig, shapes: Mapping[str, Shape], machine: Machine, *, lengths: Lengths
) -> list[Need]:
    """Return what each stage needs whose model is known, in order.

    Args:
        config: of the run.
        shapes: of the models that are here, by `student` or the name of a teacher.
        machine: that the stages run on.
        lengths: of the run's longest sequences.
    """
    return list(_Needs(config, shapes, machine, lengths).all())


class _Needs:
    def __init__(
        self, config: RunConfig, shapes: Mapping[str, Shape], machine: Machine, lengths: Lengths
    ) -> None:
        self._config, self._shapes, self._machine = config, shapes, machine
        self._lengths = lengths

    def all(self) -> Iterator[Need]:
        config, student = self._config, self._shapes.get(STUDENT)
        if student is not None:
            yield from self._served("rollout", student, config.rollout, config.student.dtype)
        for name, teacher in config.teachers.items():
            if name in self._shapes:
                stage, shape = f"score {name}", self._shapes[name]
                yield from self._served(stage, shape, config.score, teacher.dtype, scores=True)
        if student is not None:
            yield from self._learned(student)
            if config.eval is not None:
                yield from self._served("eval", student, config.eval, config.student.dtype)
            yield from self._kept(student)

    def _served(
        self, stage: str, shape: Shape, section: EngineSection, dtype: str, *, scores: bool = False
    ) -> Iterator[Need]:
        if section.engine == "server" and section.server.urls:
            return
        lengths = replace(self._lengths, response=section.response_limit or self._lengths.response)
        if section.engine != "hf":
            yield self._of_vllm(stage, shape, section, dtype, lengths)
            return
        on_gpu = self._on_gpu(section.device)
        parts = hf_parts(
            shape,
            section,
            lengths,
            dtype=dtype,
            samples=not scores,
            on_gpu=on_gpu,
        )
        yield self._need(stage, parts, ADVICE["hf"], on_gpu=on_gpu)

    def _of_vllm(
        self, stage: str, shape: Shape, section: EngineSection, dtype: str, lengths: Lengths
    ) -> Need:
        """Return the need of vLLM, whose memory is the share of a GPU that it may take."""
        parts = vllm_parts(shape, section, lengths, dtype=dtype)
        share = section.vllm.gpu_memory_utilization
        held = int(share * min(self._machine.gpus)) if self._machine.gpus else None
        note = ""
        if held is not None:
            left = held - total(parts) + parts["keys and values"]
            at_once = sequences_at_once(shape, section, lengths, dtype=dtype, left=left)
            note = f"{max(0, at_once):,} of the longest sequences at once"
        return Need(stage, "GPU", parts, held, ADVICE["vllm"], note)

    def _learned(self, shape: Shape) -> Iterator[Need]:
        train = self._config.train
        on_gpu = self._on_gpu(train.device)
        parts, beside = learner_parts(shape, train, self._lengths, on_gpu=on_gpu)
        host = {what: train.num_processes * size for what, size in beside.items()}
        host["shards"] = (
            train.num_processes * train.shuffle_shards * self._lengths.rows * self._row_bytes
        )
        if not on_gpu:
            own = {what: train.num_processes * size for what, size in parts.items()}
            yield self._need("train", own | host, ADVICE["train"], on_gpu=False)
            return
        yield self._need("train", parts, ADVICE["train"], on_gpu=True)
        whole = train.num_processes * loaded_bytes(shape, train)
        loaded: Parts = {"the student as it is loaded": whole}
        more = max(loaded, published_parts(shape, train), key=total)
        host |= more
        yield self._need("train", host, ADVICE["host"], on_gpu=False)

    def _kept(self, student: Shape) -> Iterator[Need]:
        """Yield what a command holds that keeps teachers and learner loaded, on a CPU."""
        config = self._config
        devices = (config.score.device, config.train.device)
        if any(map(self._on_gpu, devices)) or config.run.keep_models is False:
            return
        if config.score.engine != "hf" or any(n not in self._shapes for n in config.teachers):
            return
        (learner,) = self._learned(student)
        read = {
            f"teacher {name}": self._shapes[name].parameters * SIZES[teacher.dtype]
            for name, teacher in config.teachers.items()
        }
        advice = "set run.keep_models = false"
        yield self._need("opd run", read | {"learner": learner.bytes}, advice, on_gpu=False)

    @property
    def _row_bytes(self) -> int:
        """Return the bytes of a scored sequence as the learner holds it."""
        signal = signal_of(self._config)
        kept = signal.k + signal.sample + signal.candidates + signal.draws
        return self._lengths.response * (kept + 3) * ID_AND_VALUE + self._lengths.prompt * 4

    def _on_gpu(self, device: str) -> bool:
        return device != "cpu" and (device != "auto" or bool(self._machine.gpus))

    def _need(self, stage: str, parts: Parts, advice: str, *, on_gpu: bool) -> Need:
        if on_gpu:
            return Need(stage, "GPU", parts, min(self._machine.gpus, default=None), advice)
        return Need(stage, "CPU", parts, self._machine.memory_bytes, advice)
