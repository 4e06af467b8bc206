"""The check of a run's objective on its own first rows: identities, bias, noise, best choice.

Promises: nothing is stored; a teacher is loaded only where it is asked for. The student is that of
the round's checkpoint.
Shapes: T positions, H hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoints.opening import opened_model
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.layout import batch_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.inputs import TrainInputs, find_inputs
from pipeline.learner.module import load_student
from pipeline.learner.objective.checked import Checked, FormFigures
from pipeline.learner.objective.forms import By, Form, forms_of, rows_of, without_sample
from pipeline.learner.objective.rounds import round_settings, what_it_reads
from pipeline.learner.objective.whole import (
    TeacherAtHand,
    load_teacher,
    teacher_of,
    whole_gradients,
    whole_loss,
)
from pipeline.learner.sequences import Batch
from pipeline.learner.settings import chunk_mb
from pipeline.models.head import Head, decoder_of, head_of, rows_in
from pipeline.models.loading import pick_device
from pipeline.models.source import ModelSource
from pipeline.objectives.check.identities import fused_error, mass_score, position_gradients
from pipeline.objectives.check.moments import Gradients, step_cosine, worth
from pipeline.objectives.targets import Targets
from pipeline.runs.run import Run, check_run
from schemas.errors import ConfigError, DataError
from schemas.scoresignal import SampleOf

POSITIONS = 1024
"""Trained positions that are looked at, to the end of a response; fewer where there are fewer."""

PLAIN_MB = 64.0
"""MiB of logits through which autograd goes to check the fused head."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest relative difference of the fused head's gradients from those of the plain form."""

MOST_ERRORS = 8.0
"""Standard errors that the mass of a sample may be away from what is expected."""


@dataclass(frozen=True, eq=False)
class Rows:
    """First rows of a round with each sample that they hold, and the student at their tokens."""

    batches: Mapping[By, Batch]
    hidden_TH: Tensor
    head: Head
    step_tokens: int
    chunk_tokens: int
    teacher: TeacherAtHand | None = None
    """At the same positions, where it was loaded."""

    def targets(self, form: Form, *, in_step: bool) -> Targets:
        """Return the teacher's side of a form, as a step takes it or without a step's factor."""
        batch, vocab_size = rows_of(form, self.batches), self.head.weight_VH.shape[0]
        targets = batch_targets(batch, form.loss, vocab_size).to(self.hidden_TH.device)
        return targets.in_step(self.step_tokens) if in_step else targets

    def gradients(self, form: Form, *, in_step: bool) -> Gradients:
        """Return the gradients of a form at all trained positions."""
        targets = self.targets(form, in_step=in_step)
        found_TH = position_gradients(
            self.hidden_TH, self.head, targets, form.loss, chunk_tokens=self.chunk_tokens
        )
        live_T = targets.weight_T > 0
        return Gradients(found_TH[live_T].double(), self.hidden_TH[live_T].double())

    def whole(self, form: Form) -> Gradients | None:
        """Return the gradients over all ids that a form's are to be; None where none are known."""
        loss = whole_loss(form.loss)
        if self.teacher is None or loss is None:
            return None
        targets = self.targets(form, in_step=False)
        found_TH = whole_gradients(
            self.hidden_TH,
            self.head,
            targets,
            self.teacher,
            loss,
            chunk_tokens=rows_in(PLAIN_MB, self.head.weight_VH.shape[0]),
        )
        live_T = targets.weight_T > 0
        return Gradients(found_TH[live_T].double(), self.hidden_TH[live_T].double())


def check_objective(run: Run, round_index: int, *, with_teacher: bool = False) -> Checked:
    """Return what the objective of a round is worth on its first rows.

    Args:
        run: the run.
        round_index: the round.
        with_teacher: whether the teacher is loaded, and every form measured against all ids.

    Raises:
        ConfigError: the round is not sampled or not scored, or has a single token to train; its
            teacher cannot be loaded.
        DataError: an identity is broken.
        IdentityError: rows, scores or settings are of another run.
    """
    check_run(run)
    inputs = find_inputs(run, round_index)
    teacher = teacher_of(inputs.scores) if with_teacher else None
    loss = round_settings(run, inputs).loss
    batches = _first_rows(run, inputs)
    rollout = run.config.rollout
    truncated = rollout.top_p < 1.0 or rollout.top_k > 0
    forms = forms_of(loss, batches, truncated=truncated)
    with opened_model(run, inputs.policy) as source:
        rows = _with_student(run, batches, source)
        if teacher is not None:
            rows = _with_teacher(run, rows, teacher)
        figures = tuple(_figures(rows, form, forms) for form in forms)
    batch = batches["bucket"]
    return Checked(
        round=round_index,
        rows=len(batch.response_tokens_B),
        positions=int((batch.weight_T > 0).sum()),
        step_tokens=rows.step_tokens,
        forms=figures,
    )


def _first_rows(run: Run, inputs: TrainInputs) -> dict[By, Batch]:
    """Return the first rows that can be trained: without a sample, and with each that they hold."""
    oldest = inputs.round_index - run.config.train.max_staleness
    inputs = _first_units(inputs)
    data = _reader(run, inputs, "student")
    lengths = data.read_lengths(oldest_round=oldest)
    usable = np.flatnonzero(lengths.usable_R)
    ends = np.cumsum(lengths.trained_tokens_R[usable])
    if not len(ends) or ends[-1] < 2:
        raise ConfigError(
            f"round {inputs.round_index} has {ends[-1] if len(ends) else 0} tokens to train in its "
            "first units, and a variance needs two: check a round with longer responses"
        )
    rows = usable[: int(np.searchsorted(ends, POSITIONS)) + 1]
    own = data.batch(rows)
    found: dict[By, Batch] = {"bucket": without_sample(own)}
    if own.teacher.sample is not None:
        found["student"] = own
    theirs = _reader(run, inputs, "teacher").batch(rows)
    if theirs.teacher.sample is not None:
        found["teacher"] = theirs
    return found


def _reader(run: Run, inputs: TrainInputs, of: SampleOf) -> RoundData:
    """Return what reads the rows of some inputs, with the sample of one side where it is stored."""
    return RoundData(
        run.storage,
        inputs.rollout,
        inputs.scores,
        keep=2,
        rewards=inputs.rewards,
        gate=inputs.gate,
        **what_it_reads(run, inputs) | {"samples": (of,)},
    )


def _first_units(inputs: TrainInputs) -> TrainInputs:
    """Return a round's inputs with as few of its units as surely have enough tokens."""
    units, count, tokens = inputs.rollout.units, 0, 0
    while count < len(units) and tokens < 4 * POSITIONS:
        tokens, count = tokens + units[count].shard.tokens, count + 1
    return replace(
        inputs,
        rollout=inputs.rollout.model_copy(update={"units": units[:count]}),
        scores={
            name: manifest.model_copy(update={"units": manifest.units[:count]})
            for name, manifest in inputs.scores.items()
        },
    )


def _with_student(run: Run, batches: Mapping[By, Batch], source: ModelSource) -> Rows:
    """Return the rows with what the student computes of them, in the learner's number format."""
    train = run.config.train
    device = pick_device(train.device)
    student, mode, _ = load_student(source, train, device)
    student = student.to(getattr(torch, train.dtype))
    mode.set(student, learns=False)
    batch = batches["bucket"]
    head, trained = head_of(student), int((batch.weight_T > 0).sum())
    per_row = trained / len(batch.response_tokens_B)
    vocab_size = head.weight_VH.shape[0]
    return Rows(
        batches=batches,
        hidden_TH=_hidden(student, batch, device, tokens=train.micro_batch_tokens),
        head=head,
        step_tokens=max(1, round(train.sequences_per_step * per_row)),
        chunk_tokens=rows_in(chunk_mb(train, device), vocab_size),
    )


def _with_teacher(run: Run, rows: Rows, name: str) -> Rows:
    """Return the rows with what their teacher computes of them."""
    train = run.config.train
    device, batch = pick_device(train.device), rows.batches["bucket"]
    model = load_teacher(run, name, device)
    hidden_TH = _hidden(model, batch, device, tokens=train.micro_batch_tokens)
    return replace(rows, teacher=TeacherAtHand(hidden_TH, head_of(model)))


@torch.no_grad()
def _hidden(student: Any, batch: Batch, device: str, *, tokens: int) -> Tensor:
    """Return the last hidden states that predict a batch's response tokens, [T, H]."""
    longest = int((batch.prompt_tokens_B + batch.response_tokens_B).max())
    count = len(batch.response_tokens_B)
    parts, each = [], max(1, tokens // longest)
    for first in range(0, count, each):
        part = batch.take(np.arange(first, min(count, first + each)))
        ids_BT, mask_BT, states_2T = batch_inputs(part, device)
        out = decoder_of(student)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        parts.append(out.last_hidden_state[states_2T[0], states_2T[1]])
    return torch.cat(parts)


def _figures(rows: Rows, form: Form, forms: tuple[Form, ...]) -> FormFigures:
    """Return a form's figures, once its identities hold."""
    error, score = _identities(rows, form)
    right = _reference(form, forms)
    step = rows.gradients(form, in_step=True)
    told = worth(step, rows.gradients(right, in_step=False))
    itself, whole = right == form and form.by != "token", rows.whole(form)
    return FormFigures(
        form=form,
        reference=None if itself else right.name,
        worth=told,
        cosine=told.cosine(rows.step_tokens),
        of_all_ids=None if whole is None else step_cosine(step, whole, rows.step_tokens),
        fused_error=error,
        mass_score=score,
    )


def _reference(form: Form, forms: tuple[Form, ...]) -> Form:
    """Return the form of the same objective whose mean is right: a stored sample's, else y's."""
    same = [one for one in forms if one.loss.kind == form.loss.kind and one.unbiased]
    order: list[By] = ["student", "token", "bucket", "teacher"]
    if form.loss.samples[:1] == ("teacher",) or form.loss.kind in ("forward_kl", "skew_kl"):
        order = ["teacher", *order[:3]]
    return min(same, key=lambda one: order.index(one.by), default=form)


def _identities(rows: Rows, form: Form) -> tuple[float, float | None]:
    """Return how far the fused head is from the plain form, and a sample from its mass.

    Raises:
        DataError: one of them is further than rounding and chance allow.
    """
    vocab_size = rows.head.weight_VH.shape[0]
    some = slice(0, min(len(rows.hidden_TH), rows_in(PLAIN_MB, vocab_size)))
    hidden_TH, targets = rows.hidden_TH[some], rows.targets(form, in_step=True)[some]
    chunk = min(rows.chunk_tokens, max(1, len(hidden_TH) // 2))  # so that there are several
    error = fused_error(hidden_TH, rows.head, targets, form.loss, chunk_tokens=chunk)
    allowed = TOLERANCE.get(hidden_TH.dtype, max(TOLERANCE.values()))
    if not error <= allowed:
        raise DataError(
            f"{form.name}: the gradient of the fused head differs from that of the plain loss by "
            f"{error:.3g} of its norm at {len(hidden_TH)} positions on {hidden_TH.device}, at most "
            f"{allowed:g} would pass for rounding. Do not train here: a driver, a kernel or a "
            "build of torch computes wrongly. Try train.device = 'cpu', and report it"
        )
    with torch.no_grad():
        score = mass_score(rows.head.to(torch.float32).logits(hidden_TH.float()), targets)
    if score is not None and not abs(score) <= MOST_ERRORS:
        raise DataError(
            f"{form.name}: the ids of the sample have a mass that is {score:.1f} standard errors "
            f"away from that of all ids outside the top-k, at most {MOST_ERRORS:g} would pass for "
            "chance. They were not drawn with the probabilities that are stored: `opd doctor "
            "--drift` compares the engines"
        )
    return error, score
