"""The DeepSpeed learner: one engine, its optimizer steps, its resumable state.

Promises: the loss of a step is the sum over its tokens divided by their number over all processes,
whatever the micro-batches; [tokens, vocabulary] logits never exist at once.
Shapes: B rows, T tokens, H hidden.
"""

import gc
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.engines.memory import empty_device, leave_imports
from pipeline.learner.batches import StepPlan, packed_steps
from pipeline.learner.feed.ahead import Ahead
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.device.lane import Lane
from pipeline.learner.feed.layout import batch_inputs, packed_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.metrics import step_metrics
from pipeline.learner.module import DistillationModule, Layout, load_student
from pipeline.learner.ranks import Ranks, sum_over_ranks, together
from pipeline.learner.sequences import Batch, Rows, untrained_batch
from pipeline.learner.settings import LearnerSettings, chunk_mb, engine_config, weight_groups
from pipeline.learner.statefiles import files_of, optimizer_kept, read_parts, write_parts
from pipeline.models.head import head_of, rows_in
from pipeline.models.lora import adapter_parameters
from pipeline.models.source import ModelSource
from pipeline.objectives.targets import Targets
from pipeline.store import interrupts
from schemas.config.loss import LossConfig
from schemas.errors import DataError, OpdError

Micro = tuple[Tensor, Layout, Tensor, Targets]
"""Ids [B, T], how rows stand in them, the states [2, T] that predict tokens, and targets."""

TAG = "state"
"""What DeepSpeed calls a state, and the folder in which it looks for it."""


class Learner:
    """A DeepSpeed engine around a student."""

    def __init__(self, source: ModelSource, settings: LearnerSettings, ranks: Ranks) -> None:
        """Load the student and wrap it."""
        import deepspeed

        leave_imports()
        train = settings.train
        found = together(lambda: load_student(source, train, ranks.device))
        student, mode, self.padded_because = found
        self.vocab_size = int(head_of(student).weight_VH.shape[0])
        chunk_tokens = rows_in(chunk_mb(train, ranks.device), self.vocab_size)
        module = DistillationModule(student, mode, settings.loss, chunk_tokens=chunk_tokens)
        optimizer = torch.optim.AdamW(
            weight_groups(module, train),
            lr=train.learning_rate,
            betas=train.betas,
            eps=train.eps,
            fused=not train.offload_optimizer,
        )
        with warnings.catch_warnings(action="ignore"):
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=engine_config(settings)
            )
        self._settings, self._ranks, self._lane = settings, ranks, Lane(ranks.device)
        self._is_plain = train.zero_stage == 0 and train.dtype == "float32"
        if self._is_plain and ranks.count == 1:  # a gradient is the sum over all processes already
            self._engine.enable_backward_allreduce = False
        self._check_masters()

    def dealt(self, steps: list[StepPlan], total_tokens_R: Rows) -> list[StepPlan]:
        """Return steps with their rows dealt as this learner takes them, packed or padded."""
        if self.padded_because:
            return steps
        most, count = self._settings.train.micro_batch_tokens, self._ranks.count
        return packed_steps(steps, total_tokens_R, micro_tokens=most, processes=count)

    @contextmanager
    def reading_ahead(self, data: RoundData, plans: Sequence[StepPlan]) -> Iterator[Ahead[Micro]]:
        """Give this process's micro-batches of some steps, made in another thread."""
        order = [micro[self._ranks.rank] for plan in plans for micro in plan.micro]
        with (
            data.reading_ahead([rows for rows in order if len(rows)]),
            Ahead(partial(self._micro, data), order) as ahead,
        ):
            yield ahead

    def step(
        self,
        plan: StepPlan,
        data: RoundData | Ahead[Micro],
        learning_rate: float,
        *,
        distill: float = 1.0,
    ) -> dict[str, float | None]:
        """Train on the rows of one step; return its metrics.

        Where the loss or the gradient norm is no number, the step is skipped: it changes nothing.
        `distill` is the share of its weight that distillation has in the step.

        Raises:
            DataError: a target is impossible.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        scale = self._ranks.count / max(plan.trained_tokens, 1)
        sums, totals, failed = _Sums(), dict[str, float](), list[OpdError]()
        for number, micro in enumerate(plan.micro, 1):
            interrupts.beat()
            self._engine.set_gradient_accumulation_boundary(number == len(plan.micro))
            *inputs, targets = self._taken(data, micro[self._ranks.rank], failed)
            targets = targets.in_step(plan.trained_tokens, distill=distill)
            loss, values = self._engine(*inputs, targets, scale)
            sums.add({"loss": loss.double() / scale, "weight": targets.weight_T.sum(), **values})
            if number == len(plan.micro):
                together(partial(_raise_first, failed))
                totals = sums.over_ranks()
                if not math.isfinite(totals["loss"]):
                    loss = loss * math.nan  # so that what is not a step of all is one of none
            self._engine.backward(loss)
        return step_metrics(totals, plan, self._update(), learning_rate)

    def full_state(self) -> dict[str, Tensor] | None:
        """Return what is trained on the CPU, on the main process; every one must call.

        That is the student's whole state, or its adapter's weights by their names in a folder.
        """
        import deepspeed

        partitioned = self._settings.train.zero_stage == 3
        state: dict[str, Tensor] = {}
        for name, tensor in self._trained().items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=partitioned):
                if self._ranks.is_main:
                    state[name] = tensor.detach().to("cpu", copy=True)
        return state if self._ranks.is_main else None

    @torch.no_grad()
    def probe(self, batch: Batch) -> Tensor:
        """Return the student's log-probabilities of a batch's response tokens, float32 [T]."""
        self._engine.eval()
        ids_BT, mask_BT, states_2T = batch_inputs(batch, self._ranks.device)
        logits_BTV = self._student(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        self._engine.train()
        return token_logprobs(logits_BTV, ids_BT, states_2T)

    def save(self, folder: Path) -> None:
        """Write this process's part of the state into a folder; every process must call.

        Raises:
            ConfigError: a weight is no number.
        """
        with files_of(self._engine) as files:
            self._engine.save_checkpoint(
                str(folder),
                tag=TAG,
                save_latest=False,
                exclude_frozen_parameters=self._is_adapter,
            )
        together(lambda: write_parts(files.parts, folder))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; every process must call.

        Raises:
            DataError: the files are not a whole state of such a learner.
        """
        parts = together(lambda: read_parts(folder, self._ranks.rank))
        for name in parts:  # what DeepSpeed looks for before it asks for what is in it
            (folder / TAG).mkdir(exist_ok=True)
            (folder / TAG / name).with_suffix(".pt").touch()
        with files_of(self._engine, parts), optimizer_kept(self._engine):
            path, _ = self._engine.load_checkpoint(
                str(folder), tag=TAG, load_module_strict=not self._is_adapter
            )
            if path is None:
                raise KeyError(f"the weights of process {self._ranks.rank}")

    def aim_at(self, loss: LossConfig) -> None:
        """Take another objective from the next step on."""
        self._settings = replace(self._settings, loss=loss)
        self._engine.module.loss = loss

    @property
    def student(self) -> Any:
        """Return the student's module."""
        return self._student

    def close(self) -> None:
        """Give the engine's memory back."""
        from deepspeed.runtime.zero import parameter_offload

        self._engine.destroy()
        stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])  # ZeRO-3 leaves the module here
        stack[:] = [module for module in stack if module is not self._engine.module]
        del self._engine, stack
        gc.collect()  # DeepSpeed's optimizers hold each other, and their masters
        empty_device()

    @property
    def _student(self) -> Any:
        return self._engine.module.student

    @property
    def _is_adapter(self) -> bool:
        return self._settings.train.lora is not None

    def _trained(self) -> dict[str, Tensor]:
        if self._is_adapter:
            return adapter_parameters(self._student)
        state: dict[str, Tensor] = self._student.state_dict(keep_vars=True)
        return state

    def _micro(self, data: RoundData, rows: Rows) -> Micro:
        """Return what the module takes of some rows, on the device, nothing of the engine's."""
        batch = data.batch(rows) if len(rows) else untrained_batch()
        return self._lane.make(lambda: self._micro_of(batch))

    def _micro_of(self, batch: Batch) -> Micro:
        loss, by_row, device = self._settings.loss, self._settings.by_row, self._ranks.device
        inputs = batch_inputs if self.padded_because else packed_inputs
        targets = batch_targets(batch, loss, self.vocab_size, by_row=by_row, device=device)
        return *inputs(batch, device), targets

    def _taken(self, data: RoundData | Ahead[Micro], rows: Rows, failed: list[OpdError]) -> Micro:
        """Return the next micro-batch.

        A process among others must take part in a step to its end. Where its data fail, it does so
        without rows, and keeps the error, which all of them are told then.
        """
        micro = None
        try:
            if not failed:
                micro = data.take() if isinstance(data, Ahead) else self._micro(data, rows)
        except OpdError as error:
            if self._ranks.count == 1:
                raise
            failed.append(error)
        if micro is None:
            micro = self._micro_of(untrained_batch())
        return self._lane.claim(micro)

    def _update(self) -> float | None:
        """Change the weights; return the gradient norm before clipping.

        Where it is no number, nothing is changed, and DeepSpeed forgets the gradient.
        """
        if self._is_plain:  # here DeepSpeed keeps no norm, and would clip by it whatever it is
            grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            return math.nan
        return norm if self._is_plain else self._engine.get_global_grad_norm()

    def _check_masters(self) -> None:
        dtype = next(self._engine.module.parameters()).dtype
        if str(dtype) != f"torch.{self._settings.train.dtype}":
            raise DataError(f"the engine trains in {dtype}, not {self._settings.train.dtype}")


def _raise_first(errors: Sequence[OpdError]) -> None:
    for error in errors:
        raise error


class _Sums:
    """Sums over the tokens of a step, kept on the device: reading one would wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add those of a micro-batch."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()

    def over_ranks(self) -> dict[str, float]:
        """Return the sums over all processes; every one must call."""
        total = sum_over_ranks(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, total, strict=True))


def token_logprobs(logits_BTV: Tensor, ids_BT: Tensor, states_2T: Tensor) -> Tensor:
    """Return float32 [T] log-probabilities of the tokens that follow the given states."""
    logits_TV = logits_BTV[states_2T[0], states_2T[1]].float()
    tokens_T1 = ids_BT[states_2T[0], states_2T[1] + 1][:, None]
    return (logits_TV.gather(-1, tokens_T1) - logits_TV.logsumexp(-1, keepdim=True))[:, 0]
