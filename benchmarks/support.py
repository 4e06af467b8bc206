"""`support`: gradients from what a cache keeps of a token, against those of the whole vocabulary.

A student samples, a teacher scores; both are random models of a large vocabulary, the student is
the teacher with noise on its weights. The gradient of all its weights is summed over positions, as
a step sums it. Shapes: B rows, T positions, H hidden, V vocabulary, N ids of a sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.inputs import make_scorer
from benchmarks.kit.measure import Case, Result
from pipeline.engines.hf.sampling import own_sample
from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.samples import Sample, threshold_sample, token_sample
from pipeline.objectives.targets import Targets, build_targets
from pipeline.scores.columns import table_of
from pipeline.scores.inclusion import inclusions
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals
from pipeline.shards.scores import write_scores
from schemas.config.loss import LossConfig
from schemas.scoresignal import Signal

RESPONSE = 64
"""Positions of a sequence."""

CHUNK = 256
"""Positions whose logits exist at once."""

SHARPNESS = 4.2
"""Standard deviation of the teacher's logits: its likeliest 64 ids have 84 % of the mass."""

NOISE = {"near": 0.028, "far": 0.065}
"""Noise on the student's weights, as a share of their standard deviation: a reverse KL of about 0.1
and 0.6 nats."""

FURTHEST = 65_536
"""Positions at which only the forms marked `long` are measured."""


@dataclass(frozen=True)
class Form:
    """What is kept of each token, and the loss that reads it."""

    loss: str
    k: int
    own: int = 0
    """Ids of the student's threshold sample."""
    sample: int = 0
    """Ids of the teacher's threshold sample."""
    estimator: str = "auto"
    long: bool = False

    @property
    def name(self) -> str:
        """Return the form in words."""
        parts = [f"top-{self.k}"] if self.k else []
        parts += [f"{self.own} student ids"] if self.own else []
        parts += [f"{self.sample} teacher ids by sample"] if self.sample else []
        kept = " + ".join(parts)
        return f"{kept}, one bucket" if self.estimator == "bucket" else kept

    @property
    def signal(self) -> Signal:
        """Return what a teacher's pass keeps."""
        return Signal(self.k, candidates=self.own, sample=self.sample)

    @property
    def config(self) -> LossConfig:
        """Return the objective."""
        return LossConfig.model_validate({"kind": self.loss, "estimator": self.estimator})


DEFAULT = Form("reverse_kl", k=64, long=True)
"""What a run keeps that names no sample: the sampled token corrects the top-k."""

FORMS = (
    Form("reverse_kl", k=64, estimator="bucket", long=True),
    DEFAULT,
    Form("reverse_kl", k=16),
    Form("reverse_kl", k=0, own=16, long=True),
    Form("reverse_kl", k=16, own=8),
    Form("reverse_kl", k=16, own=16, long=True),
    Form("forward_kl", k=64, estimator="bucket"),
    Form("forward_kl", k=0, sample=16),
    Form("forward_kl", k=0, sample=32),
    Form("forward_kl", k=0, sample=64),
)


def run(*, quick: bool, seed: int) -> Result:
    """Measure every form near and far; the figures are those of the default."""
    vocab, lengths = (500, (64,)) if quick else (32_768, (640, 4_096, FURTHEST))
    cases = [
        case
        for distance, noise in NOISE.items()
        for case in _distance(distance, Pair(vocab, noise, seed), lengths)
    ]
    default = [case for case in cases if case["form"] == DEFAULT.name]
    worst = min(
        (case for case in default if case["positions"] == lengths[-1]),
        key=lambda case: float(str(case["cosine"])),
    )
    return Result({"default_cosine": float(str(worst["cosine"]))}, cases, nested={"default": worst})


class Pair:
    """A teacher and a student of one architecture, and their logits."""

    def __init__(self, vocab: int, noise: float, seed: int) -> None:
        """Make both."""
        self.vocab, self.random = vocab, torch.Generator().manual_seed(seed)
        self.teacher = _model(vocab, seed)
        self.student = _model(vocab, seed)
        with torch.no_grad():
            for weight in self.student.parameters():
                if weight.dim() > 1:
                    shift = torch.randn(weight.shape, generator=self.random)
                    weight += noise * weight.std() * shift

    @torch.no_grad()
    def sampled(self, rows: int) -> Tensor:
        """Return ids [B, 1 + RESPONSE] that the student draws after a first one."""
        ids_BT = torch.randint(self.vocab, (rows, 1), generator=self.random)
        cache = None
        for _ in range(RESPONSE):
            out = self.student(input_ids=ids_BT[:, -1:], past_key_values=cache, use_cache=True)
            cache, probs_BV = out.past_key_values, out.logits[:, -1].softmax(-1)
            drawn_B1 = probs_BV.multinomial(1, generator=self.random)
            ids_BT = torch.cat([ids_BT, drawn_B1], dim=1)
        return ids_BT


def _model(vocab: int, seed: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    make: Any = Qwen3Config
    config = make(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    build: Any = Qwen3ForCausalLM
    model = build(config).float().eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=SHARPNESS / 64**0.5)
    return model


@dataclass(frozen=True, eq=False)
class _Scored:
    """A form's targets of some rows, and the bytes of a token in their shard."""

    targets: Targets
    bytes_per_token: float


def _distance(distance: str, pair: Pair, lengths: Sequence[int]) -> Iterator[Case]:
    ids_BT = pair.sampled(max(lengths) // RESPONSE)
    for positions in lengths:
        rows = ids_BT[: positions // RESPONSE]
        exact = {name: _exact(pair, rows, name) for name in ("reverse_kl", "forward_kl")}
        for form in FORMS:
            if positions < FURTHEST or form.long:
                found, size = _estimated(pair, rows, form)
                expected = exact[form.loss]
                yield {
                    "case": f"{form.loss}, {form.name}, {distance}, {positions}",
                    "loss": form.loss,
                    "form": form.name,
                    "bytes_per_token": size,
                    "distance": distance,
                    "positions": positions,
                    "cosine": float(torch.nn.functional.cosine_similarity(found, expected, 0)),
                    "norm": float(found.norm() / expected.norm()),
                }


def _exact(pair: Pair, ids_BT: Tensor, kind: str) -> Tensor:
    """Return the summed gradient of all weights, over the whole vocabulary."""

    def loss_of(states_TH: Tensor, rows_BT: Tensor) -> Tensor:
        log_q_TV = pair.student.lm_head(states_TH).log_softmax(-1)
        with torch.no_grad():
            log_p_TV = _logits(pair.teacher, rows_BT).log_softmax(-1)
        pairs = (log_q_TV, log_p_TV) if kind == "reverse_kl" else (log_p_TV, log_q_TV)
        return (pairs[0].exp() * (pairs[0] - pairs[1])).sum()

    return _gradient(pair, ids_BT, loss_of)


def _estimated(pair: Pair, ids_BT: Tensor, form: Form) -> tuple[Tensor, float]:
    """Return the summed gradient from what a form keeps, and its bytes of a token."""
    sizes, tokens = list[float](), ids_BT.shape[0] * RESPONSE

    def loss_of(states_TH: Tensor, rows_BT: Tensor) -> Tensor:
        scored = _scored(pair, rows_BT, form)
        sizes.append(scored.bytes_per_token)
        head = Head(pair.student.lm_head.weight)
        targets = scored.targets.in_step(tokens)
        return head_loss(states_TH, head, targets, form.config, chunk_tokens=CHUNK, scale=1.0)[0]

    return _gradient(pair, ids_BT, loss_of), float(np.mean(sizes))


def _gradient(pair: Pair, ids_BT: Tensor, loss_of: Any) -> Tensor:
    pair.student.zero_grad()
    for rows_BT in torch.split(ids_BT, 8):
        states_BTH = pair.student.model(input_ids=rows_BT[:, :-1], use_cache=False)
        loss_of(states_BTH.last_hidden_state.flatten(0, 1), rows_BT).backward()
    return torch.cat([p.grad.flatten() for p in pair.student.parameters() if p.grad is not None])


def _logits(model: Any, rows_BT: Tensor) -> Tensor:
    """Return the logits [T, V] of all positions of some rows."""
    logits: Tensor = model(input_ids=rows_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
    return logits


@torch.no_grad()
def _scored(pair: Pair, rows_BT: Tensor, form: Form) -> _Scored:
    """Return what is kept of some rows, as a rollout and a teacher's pass give it."""
    tokens_T = rows_BT[:, 1:].flatten()
    log_mu_TV = _logits(pair.student, rows_BT).log_softmax(-1)
    mu_T = log_mu_TV.gather(1, tokens_T[:, None])[:, 0]
    uniforms_T = torch.rand(len(tokens_T), dtype=torch.float64, generator=pair.random)
    own = own_sample(log_mu_TV, uniforms_T, form.own) if form.own else None
    arrays = score_signals(
        _logits(pair.teacher, rows_BT),
        tokens_T,
        signal=form.signal,
        vocab_size=pair.vocab,
        candidates_TN=own[0] if own else None,
        uniforms_TD=uniforms_T[:, None] if form.sample else None,
    )
    targets = build_targets(
        arrays["topk_ids"],
        arrays["topk_logprobs"],
        tail_T=arrays["tail_logprobs"],
        token_ids_T=tokens_T,
        token_logprob_T=arrays["token_logprob"],
        weight_T=torch.ones(len(tokens_T)),
        rollout_logprob_T=mu_T,
        sample=_sample(form, arrays, tokens_T, mu_T, own),
        vocab_size=pair.vocab,
    )
    return _Scored(targets, _bytes_per_token(form, arrays, pair.vocab))


def _sample(
    form: Form,
    arrays: dict[str, Tensor],
    tokens_T: Tensor,
    mu_T: Tensor,
    own: tuple[Tensor, Tensor] | None,
) -> Sample | None:
    if form.estimator == "bucket":
        return None
    if form.sample:
        nats_TN = arrays["sample_logprobs"]
        mass_T = arrays["tail_logprobs"] if form.k else torch.zeros(len(nats_TN))
        chances_TN = torch.from_numpy(inclusions(nats_TN.numpy(), mass_T.numpy()))
        return threshold_sample("teacher", arrays["sample_ids"], nats_TN, chances_TN)
    if own is None:
        return token_sample(tokens_T, arrays["token_logprob"], mu_T)
    chances_TN = torch.from_numpy(inclusions(own[1].numpy(), np.zeros(len(own[1]))))
    nats_TN = arrays["candidate_logprobs"]
    return threshold_sample("student", own[0], nats_TN, chances_TN, rollout_logprobs_TN=own[1])


def _bytes_per_token(form: Form, arrays: dict[str, Tensor], vocab: int) -> float:
    """Return what `packed-v1` stores of a token."""
    identity = make_scorer(vocab=vocab, k=form.k).identity.model_copy(
        update={"codec": "packed-v1", "signal": form.signal.words()}
    )
    scores = Scores.of({name: value.numpy() for name, value in arrays.items()})
    tokens = len(scores.token_logprob)
    table = table_of(["0" * 64], scores, np.array([tokens]), form.signal)
    return len(write_scores(table, identity)) / tokens
