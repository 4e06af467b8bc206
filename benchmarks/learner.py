"""`learner`: an optimizer step of the DeepSpeed learner, against a plain torch loop; idle ranks.

Both sides train the same model on the same micro-batches with the same loss, clipping and AdamW;
the plain loop has its tensors ready and takes a full log-softmax. Shapes: T tokens.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.dealing import dealing_cases
from benchmarks.kit.decoding import decoding_cases
from benchmarks.kit.feeding import feeding_case
from benchmarks.kit.inputs import (
    MEDIUM,
    TEACHER,
    TINY,
    Size,
    engine_section,
    make_model,
    make_scorer,
    make_sequences,
    rollout_rows,
    score_manifest,
    store_rollout,
    store_shard,
)
from benchmarks.kit.measure import (
    Action,
    Case,
    Result,
    alternate,
    cost_ratio,
    headline,
    units_per_cpu_s,
    waiting,
    wall_ratio,
    wall_seconds,
)
from benchmarks.losses import naive_loss
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.learner.batches import StepPlan, plan_steps
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.layout import batch_inputs
from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import join_ranks
from pipeline.learner.settings import LearnerSettings
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from pipeline.objectives.targets import Targets
from pipeline.shards.scores import write_scores
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.records.shards import UnitShard

LARGE = Size("180M", hidden=1024, layers=12, vocab=32_000, head=64)
"""What a GPU is given: 180 million parameters."""

DEALT = ("critical_path_ratio", "padding_share", "waiting_path_ratio")
"""Figures of steps that are dealt to ranks."""

LOSS = LossConfig(kind="forward_kl")
K = 16
MICRO_TOKENS = 1024
RATE = 1e-5
TOLERANCE = 1e-3
"""Relative difference of the two sides' losses above which they do not do the same work."""


def run(*, quick: bool, seed: int, device: str = "cpu") -> Result:
    """Measure a tiny and a 20M student, on a GPU a 20M and a larger one.

    `step_ratio` is the larger one's, `step_ratio_small` the smaller one's; of dealing, each figure
    is the worst case. `decode_cpu_ratio` is what four ranks pay to read a round over what one does.
    """
    sizes = (TINY,) if quick else (TINY, MEDIUM)
    if device != "cpu" and not quick:
        sizes = (MEDIUM, LARGE)
    cases = [_case(size, quick=quick, seed=seed, device=device) for size in sizes]
    dealt = dealing_cases(quick=quick, seed=seed)
    figures = {"step_ratio": headline(cases[-1:], "step_ratio", max)}
    figures["step_ratio_small"] = headline(cases[:1], "step_ratio", max)
    figures |= {name: headline(dealt, name, max) for name in DEALT}
    fed = feeding_case(quick=quick, seed=seed)
    figures["data_wait_share"] = headline([fed], "data_wait_share", max)
    decoded = decoding_cases(quick=quick, seed=seed)
    figures["decode_cpu_ratio"] = headline(decoded[-1:], "decode_cpu_ratio", max)
    return Result(figures, [*cases, *dealt, fed, *decoded])


def _case(size: Size, *, quick: bool, seed: int, device: str) -> Case:
    rows, repeats = (8 if quick or size is MEDIUM else 24), (3 if quick else 5)
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        source = make_model(Path(name) / "student", size, seed=seed)
        data = _scored_round(Path(name), size, rows, seed=seed)
        plan = _plan(data, rows)
        ours, plain = _Ours(source, data, plan, device), _Plain(source, data, plan, device)
        sides: dict[str, Action] = {"opd": ours, "plain": plain}
        wait = waiting(device)
        alternate(sides, 1, wait)
        _require_same(ours.loss, plain.loss)
        timings = alternate(sides, repeats, wait)
        ours.close()
    ratio = cost_ratio if device == "cpu" else wall_ratio
    return {
        "case": size.name,
        "rows": rows,
        "micro_batches": len(plan.micro),
        "trained_tokens": plan.trained_tokens,
        "step_ratio": ratio(timings["opd"], timings["plain"]),
        **{f"{name}_tokens_per_cpu_s": units_per_cpu_s(t) for name, t in timings.items()},
        **{f"{name}_step_wall_s": wall_seconds(t) for name, t in timings.items()},
    }


class _Ours:
    """The learner; a call is one optimizer step."""

    def __init__(self, source: ModelSource, data: RoundData, plan: StepPlan, device: str) -> None:
        train = TrainSection(
            learning_rate=RATE,
            sequences_per_step=sum(len(rows) for micro in plan.micro for rows in micro),
            device="cuda" if device == "cuda" else "cpu",
            micro_batch_tokens=MICRO_TOKENS,
        )
        settings = LearnerSettings(train, LOSS)
        self._learner = Learner(source, settings, join_ranks(device))
        self._data, self._plan, self.loss = data, plan, 0.0

    def __call__(self) -> int:
        metrics = self._learner.step(self._plan, self._data, RATE)
        self.loss = metrics["loss"] or 0.0
        return self._plan.trained_tokens

    def close(self) -> None:
        self._learner.close()


@dataclass(frozen=True)
class _Micro:
    """Tensors of one micro-batch."""

    ids_BT: Tensor
    mask_BT: Tensor
    states_2T: Tensor
    targets: Targets


class _Plain:
    """A loop that needs nothing but torch and transformers; a call is one optimizer step."""

    def __init__(self, source: ModelSource, data: RoundData, plan: StepPlan, device: str) -> None:
        self._model: Any = load_model(source, dtype="float32", device=device).train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        vocab = int(self._model.lm_head.weight.shape[0])
        batches = [data.batch(micro[0]) for micro in plan.micro]
        self._micro = [
            _Micro(*batch_inputs(b, device), batch_targets(b, LOSS, vocab).to(device))
            for b in batches
        ]
        self._tokens, self.loss = plan.trained_tokens, 0.0

    def __call__(self) -> int:
        self.loss = 0.0
        for micro in self._micro:
            hidden = self._model.model(
                input_ids=micro.ids_BT, attention_mask=micro.mask_BT, use_cache=False
            )
            states_TH = hidden.last_hidden_state[micro.states_2T[0], micro.states_2T[1]]
            loss = naive_loss(states_TH, self._model.lm_head.weight, micro.targets) / self._tokens
            loss.backward()  # type: ignore[no-untyped-call] # torch's gap
            self.loss += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return self._tokens


def _plan(data: RoundData, rows: int) -> StepPlan:
    order, lengths = np.arange(rows, dtype=np.int64), data.read_lengths(oldest_round=0)
    plans = plan_steps(
        [order],
        lengths.total_tokens_R,
        lengths.trained_tokens_R,
        per_step=rows,
        micro_tokens=MICRO_TOKENS,
        processes=1,
    )
    return plans[0]


def _scored_round(folder: Path, size: Size, rows: int, *, seed: int) -> RoundData:
    """Return a stored round of random sequences, scored by a small random teacher."""
    storage = Storage(str(folder / "store"))
    sequences = make_sequences(rows, size.vocab, seed=seed, response=(32, 96))
    table = rollout_rows(sequences)
    rollout = store_rollout(storage, [table])
    teacher = make_model(
        folder / "teacher", Size("teacher", hidden=64, layers=1, vocab=size.vocab), seed=seed + 1
    )
    section = engine_section(batch_tokens=MICRO_TOKENS)
    engine = open_engine(Start(teacher, section, dtype="float32", use="score"), warn)
    scorer = make_scorer(vocab=size.vocab, k=K)
    scores, _ = score_table(table, LazyEngine(lambda: engine, warn), scorer.identity)
    data = write_scores(scores, scorer.identity)
    shard = store_shard(storage, f"{scorer.folder}/data", data, scores, "token_logprob")
    units = [UnitShard(unit="u00000", shard=shard)]
    manifests = {TEACHER: score_manifest(rollout, units, scorer.key)}
    return RoundData(storage, rollout, manifests, keep=1)


def _require_same(ours: float, other: float) -> None:
    if not abs(ours - other) <= TOLERANCE * abs(other):
        raise RuntimeError(f"the sides do not do the same work: loss {ours} against {other}")
