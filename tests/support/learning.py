"""A round to learn from, learners on it, and a plain torch loop that they are held against.

The head is larger than what ZeRO-3 keeps everywhere, so that stage 3 really splits it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.learner.batches import StepPlan, plan_steps
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.layout import batch_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import Ranks, join_ranks
from pipeline.learner.sequences import Batch
from pipeline.learner.settings import LearnerSettings
from pipeline.models.source import ModelSource
from pipeline.objectives.losses import token_losses
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.config.engines import EngineSection
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from tests.support.tiny import make_model
from tests.support.tinytables import make_scorer, rollout_table, store_rollout, store_scores

VOCAB, ROWS, PER_STEP, RATE = 4096, 12, 4, 1e-3
STEPS = ROWS // PER_STEP
ALL_AT_ONCE, SOME, ONE_BY_ONE = 4096, 24, 1
STAGES = (0, 1, 2, 3)
FORWARD_KL = LossConfig(kind="forward_kl")
POLICY_GRADIENT = LossConfig(kind="policy_gradient")
OF_RESPONSES = LossConfig.model_validate(
    {
        "kind": "policy_gradient",
        "importance": "geometric",
        "policy": {"discount": 0.5, "baseline": "before"},
        "weights": {"entropy_share": 0.5, "positions": [[0, 1.0], [5, 0.5]], "rescale": True},
    }
)

State = dict[str, Tensor]
Metrics = list[dict[str, float | None]]


@dataclass(frozen=True)
class Setup:
    """A student, and a round that a teacher has scored."""

    source: ModelSource
    data: RoundData
    ranks: Ranks

    def plans(self, micro_tokens: int) -> list[StepPlan]:
        """Return the steps over all rows, whose lengths and weights differ."""
        order = np.arange(ROWS, dtype=np.int64)
        lengths = self.data.read_lengths(oldest_round=0)
        return plan_steps(
            [order],
            lengths.total_tokens_R,
            lengths.trained_tokens_R,
            per_step=PER_STEP,
            micro_tokens=micro_tokens,
            processes=1,
        )

    def learner(self, loss: LossConfig = FORWARD_KL, **fields: Any) -> Learner:
        """Return a fresh learner."""
        settings = LearnerSettings(section(**fields), loss)
        return Learner(self.source, settings, self.ranks)


@dataclass(frozen=True)
class Trained:
    """What training left: weights, the metrics of its steps, and log-probabilities."""

    state: State
    steps: Metrics
    logprobs: Tensor = field(default_factory=lambda: torch.empty(0))

    def gap(self, other: "Trained") -> float:
        """Return the largest difference between two sets of weights."""
        assert self.state.keys() == other.state.keys()
        pairs = ((t.float(), other.state[name].float()) for name, t in self.state.items())
        return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)

    def values(self, name: str) -> list[float]:
        """Return a metric of every step."""
        return [float(step[name] or 0.0) for step in self.steps]


def section(**fields: Any) -> TrainSection:
    """Return settings whose `eps` hides rounding, which Adam blows up where gradients are tiny."""
    given = {"learning_rate": RATE, "weight_decay": 0.1, "eps": 1e-4, "logit_chunk_mb": 0.08}
    return TrainSection(**{**given, "device": "cpu", "sequences_per_step": PER_STEP, **fields})


@contextmanager
def scored_round(folder: Path) -> Iterator[Setup]:
    """Give a student and a round that a teacher has scored, made in a folder."""
    student = make_model(folder / "student", vocab=VOCAB, initializer_range=0.4)
    teacher = make_model(folder / "teacher", vocab=VOCAB, teacher=True, initializer_range=0.3)
    source, cpu = ModelSource(str(teacher), None, False), EngineSection(device="cpu")
    engine = open_engine(Start(source, cpu, dtype="float32", use="score"), print)
    scorer, storage = make_scorer(k=4, vocab=VOCAB), Storage("memory://learner")
    tables = [rollout_table(ROWS // 2, seed=seed, vocab=VOCAB) for seed in range(2)]
    scores = [score_table(t, LazyEngine(lambda: engine, print), scorer.identity)[0] for t in tables]
    rollout, scored = store_rollout(storage, tables), store_scores(storage, scores, scorer)
    data = RoundData(storage, rollout, {scorer.name: scored}, keep=2)
    gc.collect()
    gc.freeze()  # every learner that is closed runs the collector
    yield Setup(ModelSource(str(student), None, False), data, join_ranks("cpu"))
    gc.unfreeze()


class Trainer:
    """Trains a fresh learner for all steps; the same training is done once."""

    def __init__(self, setup: Setup) -> None:
        """Begin with nothing trained."""
        self.setup = setup
        self._train = cache(self._fresh)

    def __call__(self, micro_tokens: int = ALL_AT_ONCE, **fields: Any) -> Trained:
        """Return what training gives; `fields` are those of `[train]`, and `loss`."""
        whole = {"zero_stage": 0, "dtype": "float32", **fields}
        return self._train(micro_tokens, tuple(sorted(whole.items())))

    def _fresh(self, micro_tokens: int, fields: tuple[tuple[str, Any], ...]) -> Trained:
        plans = self.setup.plans(micro_tokens)
        learner = self.setup.learner(**dict(fields))
        try:
            steps = [learner.step(plan, self.setup.data, RATE) for plan in plans]
            state, probe = learner.full_state(), learner.probe(rows(self.setup))
        finally:
            learner.close()
        assert state is not None
        return Trained(state, steps, probe)


def rows(setup: Setup, count: int = 6) -> Batch:
    return setup.data.batch(np.arange(count))


def reference(setup: Setup, loss: LossConfig, model: Any) -> Trained:
    """Train with whole logits, autograd, torch's clipping and AdamW; one batch per step.

    Args:
        setup: the round.
        loss: the objective.
        model: a transformers model in training mode; what wants gradients is trained.
    """
    train = section()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = [name for name in learned if "norm" in name or "embed" in name]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in learned.items() if name not in kept]},
        {"params": [learned[name] for name in kept], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=RATE,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        foreach=False,
    )
    steps: Metrics = []
    for start in range(0, ROWS, PER_STEP):
        batch = setup.data.batch(np.arange(start, start + PER_STEP))
        ids_BT, mask_BT, states_2T = batch_inputs(batch, "cpu")
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        targets = batch_targets(batch, loss, VOCAB).in_step(int((batch.weight_T > 0).sum()))
        loss_T, _ = token_losses(logits_BTV[states_2T[0], states_2T[1]], targets, loss)
        valid = int((batch.weight_T > 0).sum())
        total = (loss_T * targets.weight_T).sum() / valid
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call] # torch's gap
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        steps.append({"loss": float(total.detach()), "grad_norm": float(norm), "tokens": valid})
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return Trained(state, steps)
