"""The way of a model through opd, held against plain float32 forwards of transformers.

Promises: the reference reads one row at a time, without padding or cache; every position counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cli.progress import QuietProgress
from pipeline.checkpoints.opening import opened_model
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.engines.vllm.slot import Weights
from pipeline.learner.batches import StepPlan, plan_steps
from pipeline.learner.export import publish_student
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.layout import batch_inputs, packed_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.inputs import TrainInputs
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import join_ranks
from pipeline.learner.sequences import Batch
from pipeline.learner.settings import LearnerSettings
from pipeline.models.head import decoder_of, head_of
from pipeline.models.loading import load_model, require_causal
from pipeline.models.source import ModelSource, require_sound
from pipeline.objectives.losses import token_losses
from pipeline.runs.run import Run
from pipeline.stages.sampler import lazy_engine
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.columns import Floats, Ids
from schemas.config.engines import EngineName, EngineSection
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.fingerprint import sequence_digest
from schemas.keys import commit_key, stage_folder
from schemas.randomness import derived_seed
from schemas.records.training import CheckpointManifest, StateManifest
from schemas.scoresignal import Signal
from tests.support.promptfiles import run_of
from tests.support.tiny import make_model
from tests.support.tinytables import POLICY, make_scorer, rollout_table, store_rollout, store_scores
from tests.support.zoomodels import VOCAB

LIMIT = 1e-3
"""Largest difference from the reference, nats, in float32."""

RATE, EPS = 1e-3, 1e-4
"""Of the one step; the second hides rounding, which Adam blows up where gradients are tiny."""

STOPS = (5, 9)
PROMPTS = (1, 23, 4, 12, 9)
"""Lengths of prompts, on both sides of a window of 8; padded on the left, they are 23 long."""

RESPONSE = 14

LONGEST = max(PROMPTS) + RESPONSE

SETTINGS = (f"prompts.max_tokens={max(PROMPTS)}", f"rollout.max_new_tokens={RESPONSE}")

STATE = StateManifest(
    step=1,
    world_size=1,
    zero_stage=0,
    dtype="float32",
    steps=(),
    optimizer_restarted=False,
    files={},
)
STATE_KEY = commit_key(stage_folder("first", 0, "train"), "step-000001")

ROUNDS = count()
"""Numbers of the stores of this process, one for each model."""

Gaps = dict[str, float]


@dataclass(frozen=True)
class Round:
    """A round of samples that a teacher has scored."""

    run: Run
    inputs: TrainInputs
    data: RoundData


def prompts() -> list[Ids]:
    random = np.random.default_rng(0)
    return [random.integers(3, VOCAB, n).astype(np.int32) for n in PROMPTS]


def plain(folder: Path) -> Any:
    """Return a model as transformers loads it, but for soft caps, which only `eager` computes.

    Not all are read so: `eager` adds ALiBi of Falcon twice.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model.eval()


@torch.no_grad()
def plain_logprobs(model: Any, prompt: Ids, response: Ids) -> Floats:
    """Return the log-probabilities of each response token, from one unpadded forward."""
    row = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits_TV = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    tokens_T1 = row[0, len(prompt) :, None]
    return np.asarray(logits_TV.log_softmax(-1).gather(-1, tokens_T1)[:, 0].numpy())


def gap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest difference; infinite where a number is none."""
    mine, theirs = np.concatenate(list(found)), np.concatenate(list(expected))
    assert mine.shape == theirs.shape
    difference = np.abs(mine.astype(np.float64) - theirs)
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def look(folder: Path) -> ModelSource:
    """Return a folder as a student that has passed what opd looks at before it loads one.

    Raises:
        ConfigError: it has not.
    """
    source = ModelSource(str(folder), None, False)
    require_sound(source, "student.model", learns=True)
    require_causal(source)
    return source


def scorer_of(source: ModelSource, name: EngineName = "hf") -> Engine:
    """Return an engine as the score stage opens it."""
    section = EngineSection(engine=name, device="cpu", batch_tokens=512, logit_chunk_mb=0.01)
    start = Start(source, section, dtype="float32", use="score", max_tokens=LONGEST)
    return open_engine(start, print)


def drawn(source: ModelSource, name: EngineName = "hf") -> list[Sample]:
    """Sample as the rollout stage does.

    Raises:
        ConfigError: the engine is refused.
    """
    storage = Storage("memory://zoo")
    run = run_of(storage, Path(source.location), "prompts.jsonl", *SETTINGS)
    section = EngineSection(engine=name, device="cpu", batch_tokens=512)
    weights = Weights(source, "zoo", "float32")
    asked = prompts()
    sampling = Sampling(1.0, 1.0, 0, max_new_tokens=RESPONSE, stop_token_ids=STOPS)
    seeds = [derived_seed("zoo", row) for row in range(len(asked))]
    with lazy_engine(run, section, weights, slot=None, progress=QuietProgress()) as lazy:
        return lazy.get().generate(asked, seeds, sampling)


def engine_gaps(folder: Path, name: EngineName = "hf") -> tuple[Gaps, list[Sample]]:
    """Sample and score with an engine; return the gaps from the reference, and the samples.

    Raises:
        ConfigError: opd refuses the model.
    """
    source, asked = look(folder), prompts()
    samples = drawn(source, name)
    ids = [s.ids for s in samples]
    scorer = scorer_of(source, name)
    try:
        scores = scorer.score(asked, ids, signal=Signal(4), vocab_size=VOCAB)
    finally:
        scorer.close()
    reference = plain(folder)
    expected = [plain_logprobs(reference, p, r) for p, r in zip(asked, ids, strict=True)]
    assert np.concatenate(expected).std() > 0.1, "the model is flat: a weak test"
    sampled = gap([s.logprobs for s in samples], expected)
    return {"sampled": sampled, "scored": gap([scores.token_logprob], expected)}, samples


def whole_way(folder: Path, teacher: "Teacher", name: EngineName = "hf") -> Gaps:
    """Return the gaps of every step that a model takes through opd.

    Raises:
        ConfigError: opd refuses the model.
    """
    gaps, samples = engine_gaps(folder, name)
    if name == "hf":
        gaps |= learner_gaps(folder, teacher.scored(folder, samples))
    return gaps


class Teacher:
    """One teacher for all students of the zoo."""

    def __init__(self, folder: Path) -> None:
        """Make and open it."""
        make_model(folder, vocab=VOCAB, initializer_range=0.3, seed=3)
        engine = scorer_of(ModelSource(str(folder), None, False))
        self.engine, self.scorer = LazyEngine(lambda: engine, print), make_scorer(k=4, vocab=VOCAB)

    def scored(self, folder: Path, samples: list[Sample]) -> Round:
        """Return a round of a student's samples that it has scored."""
        table = _table(samples)
        scores = score_table(table, self.engine, self.scorer.identity)[0]
        run = run_of(Storage(f"memory://zoo-{next(ROUNDS)}"), folder, "prompts.jsonl", *SETTINGS)
        rollout = store_rollout(run.storage, [table])
        scored = {self.scorer.name: store_scores(run.storage, [scores], self.scorer)}
        policy = CheckpointManifest(index=0, policy_version=POLICY, origin={}, state=None, files={})
        data = RoundData(run.storage, rollout, scored, keep=1)
        return Round(run, TrainInputs(0, rollout, scored, policy, 0), data)


def _table(samples: list[Sample]) -> pa.Table:
    asked, count = prompts(), len(samples)
    table = rollout_table(count, vocab=VOCAB)
    columns: dict[str, list[Any]] = {
        "prompt_ids": [p.tolist() for p in asked],
        "response_ids": [s.ids.tolist() for s in samples],
        "response_mask": [[True] * len(s.ids) for s in samples],
        "rollout_student_logprobs": [s.logprobs.tolist() for s in samples],
        "sequence_digest": [sequence_digest(p, s.ids) for p, s in zip(asked, samples, strict=True)],
    }
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def learner_gaps(folder: Path, of: Round) -> Gaps:
    """Train one step, publish and reload; return the gaps from a plain loop of torch.

    Raises:
        ConfigError: opd refuses the model.
    """
    train = TrainSection(learning_rate=RATE, eps=EPS, sequences_per_step=len(PROMPTS), device="cpu")
    plan, loss = _plan(of.data), LossConfig(kind="forward_kl")
    batch = of.data.batch(plan.micro[0][0])
    source = ModelSource(str(folder), None, False)
    settings = LearnerSettings(train, loss)
    learner = Learner(source, settings, join_ranks("cpu"))
    try:
        first = _Watched(learner, batch)
        learner.step(plan, of.data, RATE)
        learned_T, trained_T = first.logprobs_T(), learner.probe(batch).numpy()
        publish_student(
            of.run, of.inputs, learner, source=source, probe=batch, state=STATE, state_key=STATE_KEY
        )
    finally:
        learner.close()
    before, after = _plain_step(folder, batch, train, loss)
    assert np.abs(after - before).max() > 10 * LIMIT, "the step changed nothing: a weak test"
    published = of.run.checkpoint(1)
    assert published is not None
    with opened_model(of.run, published) as again:
        reloaded = load_model(again, dtype="float32", device="cpu")
        exported = plain(Path(again.location))
    return {
        "learned": gap([learned_T], [before]),
        "trained": gap([trained_T], [after]),
        "reloaded": gap([_rows(reloaded, batch)], [after]),
        "exported": gap([_rows(exported, batch)], [after]),
    }


def _plan(data: RoundData) -> StepPlan:
    """Return a step over all rows at once."""
    lengths, count = data.read_lengths(oldest_round=0), len(PROMPTS)
    (plan,) = plan_steps(
        [np.arange(count, dtype=np.int64)],
        lengths.total_tokens_R,
        lengths.trained_tokens_R,
        per_step=count,
        micro_tokens=4096,
        processes=1,
    )
    return plan


class _Watched:
    """What a learner's decoder says while it takes its first step."""

    def __init__(self, learner: Learner, batch: Batch) -> None:
        self._batch, self._head = batch, head_of(learner.student)
        self._inputs = batch_inputs if learner.padded_because else packed_inputs
        weight, bias = self._head.weight_VH.detach().clone(), self._head.bias_V
        self._weight, self._bias = weight, None if bias is None else bias.detach().clone()
        self._hidden: Tensor | None = None
        decoder = decoder_of(learner.student)
        self._hook = decoder.register_forward_hook(self._see)

    def _see(self, _: Any, __: Any, output: Any) -> None:
        if self._hidden is None:
            self._hidden = output.last_hidden_state.detach().clone()

    def logprobs_T(self) -> Floats:
        """Return the log-probabilities that the step began with, in the rows' order."""
        self._hook.remove()
        assert self._hidden is not None
        head = replace(self._head, weight_VH=self._weight, bias_V=self._bias)
        ids_BT, _, states_2T = self._inputs(self._batch, "cpu")
        logits_TV = head.logits(self._hidden[states_2T[0], states_2T[1]])
        tokens_T1 = ids_BT[states_2T[0], states_2T[1] + 1][:, None]
        return np.asarray(logits_TV.log_softmax(-1).gather(-1, tokens_T1)[:, 0].numpy())


def _plain_step(
    folder: Path, batch: Batch, train: TrainSection, loss: LossConfig
) -> tuple[Floats, Floats]:
    """Return log-probabilities before and after a step of torch, row by row, with whole logits."""
    model = plain(folder)
    before = _rows(model, batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=train.betas, eps=EPS, weight_decay=train.weight_decay
    )
    logits = []
    for ids, start in zip(batch.id_rows(), batch.prompt_tokens_B.tolist(), strict=True):
        row = torch.from_numpy(ids.astype(np.int64))[None]
        logits.append(model(input_ids=row, use_cache=False).logits[0, start - 1 : -1].float())
    targets = batch_targets(batch, loss, VOCAB).in_step(int((batch.weight_T > 0).sum()))
    loss_T, _ = token_losses(torch.cat(logits), targets, loss)
    total = (loss_T * targets.weight_T).sum() / int((targets.weight_T > 0).sum())
    total.backward()  # type: ignore[no-untyped-call] # torch's gap
    torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
    optimizer.step()
    return before, _rows(model, batch)


def _rows(model: Any, batch: Batch) -> Floats:
    pairs = zip(batch.id_rows(), batch.prompt_tokens_B.tolist(), strict=True)
    return np.concatenate([plain_logprobs(model, ids[:n], ids[n:]) for ids, n in pairs])
