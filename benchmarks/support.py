"""`support`: gradients from what a cache keeps of a token, against those of the whole vocabulary.

A student samples, a teacher scores; the student is the teacher with noise on its weights. The
gradient of the student's weights is summed over positions, as a step sums it. All forms look at
the same positions, after one pass of both models. Shapes: B rows, T positions, V vocabulary, N ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gradients.forms import DEFAULT, FORMS, Form
from benchmarks.gradients.pairs import DISTANCES, RESPONSE, Pair, model_pair, random_pair
from benchmarks.gradients.summed import Look, Total, likeness
from benchmarks.kit.inputs import make_scorer
from benchmarks.kit.measure import Case, Result
from pipeline.engines.hf.sampling import own_sample
from pipeline.objectives.samples import Sample, threshold_sample, token_sample
from pipeline.objectives.targets import Targets, build_targets
from pipeline.scores.columns import table_of
from pipeline.scores.inclusion import inclusions
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals
from pipeline.scores.thinning import needed_places, thinned
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.scores import write_scores
from schemas.scoresignal import Signal

MOST_K = 64
"""Top-k of the one pass that all forms share."""

BATCH = 8
"""Rows of a pass: their logits exist at once."""

STEPS = {64: 2, 640: 4, 4_096: 1, 65_536: 1}
"""How many steps are measured of so many positions; cosine and norm are their means. Half as many
with a model's folder, where a position costs ten times as much."""

SIZED = 2_048
"""Positions whose scores are written to count bytes; as many before them teach the codec."""

_FREQUENT = ("topk_ids", "candidate_ids", "sample_ids")
"""The ids that teach it: the first that there are."""

Arrays = dict[str, Tensor]


def run(*, quick: bool, seed: int, data: Path | None = None, positions: int = 65_536) -> Result:
    """Measure every form near and far; the figures are those of the default.

    Args:
        quick: whether it is to take seconds.
        seed: root of everything random.
        data: a model's folder, in the place of random models.
        positions: the most that a step is measured with.
    """
    lengths = (64,) if quick else tuple(n for n in STEPS if 64 < n <= positions)
    cases = list[Case]()
    for distance in DISTANCES:
        if data is None:
            pair = random_pair(500 if quick else 32_768, distance, seed)
        else:
            pair = model_pair(data, distance, seed)
        steps = {n: STEPS[n] if data is None else max(1, STEPS[n] // 2) for n in lengths}
        cases += _distance(distance, pair, steps)
    default = [case for case in cases if case["form"] == DEFAULT.name]
    worst = min(
        (case for case in default if case["positions"] == lengths[-1]),
        key=lambda case: float(str(case["cosine"])),
    )
    return Result({"default_cosine": float(str(worst["cosine"]))}, cases, nested={"default": worst})


def _distance(distance: str, pair: Pair, steps: Mapping[int, int]) -> Iterator[Case]:
    found = dict[int, list[dict[Form, tuple[float, float]]]]()
    for positions, times in steps.items():
        forms = [form for form in FORMS if positions < max(STEPS) or form.long]
        found[positions] = [_step(pair, forms, positions) for _ in range(times)]
    sizes = sizes_of(pair, SIZED if max(steps) > RESPONSE else RESPONSE)
    for positions, measured in found.items():
        for form in measured[0]:
            cosine, norm = np.mean([step[form] for step in measured], axis=0)
            yield {
                "case": f"{form.loss}, {form.name}, {distance}, {positions}",
                "loss": form.loss,
                "form": form.name,
                "bytes_per_token": sizes[form],
                "distance": distance,
                "positions": positions,
                "steps": len(measured),
                "cosine": float(cosine),
                "norm": float(norm),
            }


def _step(pair: Pair, forms: Sequence[Form], positions: int) -> dict[Form, tuple[float, float]]:
    """Return cosine and norm of each form's gradient."""
    exact = {form.loss: Total(pair.head, pair.weights) for form in forms}
    totals = {form: Total(pair.head, pair.weights) for form in forms}
    for rows_BT in torch.split(pair.sampled(positions // RESPONSE), BATCH):
        states_TH = pair.states(pair.student, rows_BT)
        look = Look.at(states_TH.detach(), pair.head)
        with torch.no_grad():
            logits_TV = pair.teacher_head.logits(pair.states(pair.teacher, rows_BT))
        scored = scored_forms(pair, rows_BT, look, logits_TV)
        for loss, total in exact.items():
            total.add(states_TH, look.exact(logits_TV, loss))
        for form, total in totals.items():
            targets = scored.targets(form, scored.arrays(form)).in_step(positions)
            total.add(states_TH, look.gradient(targets, form.config))
    return {form: likeness(total, exact[form.loss]) for form, total in totals.items()}


@torch.no_grad()
def sizes_of(pair: Pair, positions: int) -> dict[Form, float]:
    """Return the bytes of a token of each form, over so many positions after as many others."""
    kept: dict[Form, list[Arrays]] = {form: [] for form in FORMS}
    for rows_BT in torch.split(pair.sampled(2 * positions // RESPONSE), BATCH):
        look = Look.at(pair.states(pair.student, rows_BT), pair.head)
        logits_TV = pair.teacher_head.logits(pair.states(pair.teacher, rows_BT))
        scored = scored_forms(pair, rows_BT, look, logits_TV)
        for form, parts in kept.items():
            parts.append(scored.arrays(form))
    return {form: _bytes_per_token(form, parts, pair.vocab) for form, parts in kept.items()}


@dataclass(frozen=True, eq=False)
class Scored:
    """What a rollout and a teacher's pass say of some rows, for whatever form."""

    pair: Pair
    tokens_T: Tensor
    mu_T: Tensor
    log_mu_TV: Tensor
    logits_TV: Tensor
    """The teacher's."""
    uniforms_T: Tensor
    top: Arrays
    """Signals with `MOST_K`, which smaller ones are parts of."""
    own: dict[tuple[int, int], tuple[Tensor, Tensor]]
    """The student's samples by size: ids, and log-probabilities when they were drawn."""

    def _own(self, form: Form) -> tuple[Tensor, Tensor]:
        size = form.own, form.most
        if size not in self.own:
            self.own[size] = self._drawn(form)
        return self.own[size]

    def _drawn(self, form: Form) -> tuple[Tensor, Tensor]:
        """Return a student's sample, that of a unit which these positions are."""
        places = max(form.own, form.most)
        ids_TN, logprobs_TN = own_sample(self.log_mu_TV, self.uniforms_T, places)
        if not form.most:
            return ids_TN, logprobs_TN
        uniforms = torch.rand(len(ids_TN), dtype=torch.float64, generator=self.pair.random)
        nats_TN = logprobs_TN.numpy()
        kept = thinned(ids_TN.numpy(), nats_TN, needed_places(nats_TN, form.own), uniforms.numpy())
        return torch.from_numpy(kept[0]).long(), torch.from_numpy(kept[1])

    @torch.no_grad()
    def arrays(self, form: Form) -> Arrays:
        """Return what the cache holds of a form, named as the arrays of `Scores`."""
        if form.sample or form.buckets > 1:
            return score_signals(
                self.logits_TV.clone(),
                self.tokens_T,
                signal=form.signal,
                vocab_size=self.pair.vocab,
                candidates_TN=self._own(form)[0] if form.own else None,
                uniforms_TD=self.uniforms_T[:, None],
            )
        found = _first(self.top, form.k)
        if form.own:
            ids_TN = self._own(form)[0]
            nats_TN = self.logits_TV.gather(1, ids_TN.clamp(min=0)) - self.log_z_T1
            found["candidate_ids"] = ids_TN.to(torch.int32)
            found["candidate_logprobs"] = nats_TN.masked_fill(ids_TN < 0, -torch.inf)
        return found

    @cached_property
    def log_z_T1(self) -> Tensor:
        """Return the log-sum-exp of the teacher's logits."""
        return self.logits_TV.logsumexp(-1, keepdim=True)

    def targets(self, form: Form, arrays: Arrays) -> Targets:
        """Return a form's targets."""
        return build_targets(
            arrays["topk_ids"],
            arrays["topk_logprobs"],
            tail_T=arrays["tail_logprobs"],
            token_ids_T=self.tokens_T,
            token_logprob_T=arrays["token_logprob"],
            weight_T=torch.ones(len(self.tokens_T)),
            rollout_logprob_T=self.mu_T,
            sample=self._sample(form, arrays),
            vocab_size=self.pair.vocab,
        )

    def _sample(self, form: Form, arrays: Arrays) -> Sample | None:
        if form.estimator == "bucket":
            return None
        if form.sample:
            nats_TN = arrays["sample_logprobs"]
            mass_T = arrays["tail_logprobs"] if form.k else torch.zeros(len(nats_TN))
            chances_TN = torch.from_numpy(inclusions(nats_TN.numpy(), mass_T.numpy()))
            return threshold_sample("teacher", arrays["sample_ids"], nats_TN, chances_TN)
        if not form.own:
            return token_sample(self.tokens_T, arrays["token_logprob"], self.mu_T)
        ids_TN, mu_TN = self._own(form)
        chances_TN = torch.from_numpy(inclusions(mu_TN.numpy(), np.zeros(len(mu_TN))))
        nats_TN = arrays["candidate_logprobs"]
        return threshold_sample("student", ids_TN, nats_TN, chances_TN, rollout_logprobs_TN=mu_TN)


@torch.no_grad()
def scored_forms(pair: Pair, rows_BT: Tensor, look: Look, logits_TV: Tensor) -> Scored:
    """Return what is said of some rows, with all that the forms share.

    Args:
        pair: both models.
        rows_BT: ids, the first of each row given.
        look: the student at these positions.
        logits_TV: the teacher's logits.
    """
    tokens_T, log_mu_TV = rows_BT[:, 1:].flatten(), look.logits_TV.log_softmax(-1)
    uniforms_T = torch.rand(len(tokens_T), dtype=torch.float64, generator=pair.random)
    most = Signal(min(MOST_K, pair.vocab))
    top = score_signals(logits_TV.clone(), tokens_T, signal=most, vocab_size=pair.vocab)
    mu_T = log_mu_TV.gather(1, tokens_T[:, None])[:, 0]
    return Scored(pair, tokens_T, mu_T, log_mu_TV, logits_TV, uniforms_T, top, {})


def _first(top: Arrays, k: int) -> Arrays:
    """Return the signals of a smaller top-k, from those of a larger one."""
    rest_TK = torch.cat([top["topk_logprobs"][:, k:], top["tail_logprobs"][:, None]], dim=-1)
    cut = {name: top[name][:, :k] for name in ("topk_ids", "topk_logprobs")}
    return top | cut | {"tail_logprobs": rest_TK.logsumexp(-1)}


def _bytes_per_token(form: Form, parts: Sequence[Arrays], vocab: int) -> float:
    """Return what `packed-v1` stores of a token, after earlier scores have taught it."""
    arrays = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    identity = make_scorer(vocab=vocab, k=form.k).identity.model_copy(
        update={"codec": "packed-v1", "signal": form.signal.words()}
    )
    half = len(arrays["token_logprob"]) // 2
    ids = next(arrays[name] for name in _FREQUENT if name in arrays and arrays[name].shape[1])
    taught = ids[:half]
    renumbering = Renumbering.learn(taught[taught >= 0], vocab_size=vocab)
    scores = Scores.of({name: values[half:] for name, values in arrays.items()})
    rows = half // RESPONSE
    digests = [f"{row:064x}" for row in range(rows)]
    table = table_of(digests, scores, np.full(rows, RESPONSE), form.signal)
    return len(write_scores(table, identity, renumbering=renumbering)) / half
