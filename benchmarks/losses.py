"""`losses`: head and loss in chunks, against a full log-softmax and against bare matmuls.

All sides run forward and backward over the same targets, and must give the same loss: on a CPU in
CPU seconds, on a GPU in wall time. Ours tells the student's entropy too, in the same pass.
Shapes: T tokens, H hidden, V vocabulary, K top-k, S support.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kit.measure import (
    Case,
    Result,
    alternate,
    cost_ratio,
    cpu_seconds,
    headline,
    in_child,
    peak_bytes,
    waiting,
    wall_ratio,
    wall_seconds,
)
from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.targets import Targets, build_targets
from schemas.config.loss import LossConfig

LOSS = LossConfig(kind="forward_kl")
K = 64
TOP_MASS = 0.9
"""Teacher mass in the top-k."""

MEMORY_HIDDEN = 128
"""Width for memory: logits outweigh the head's gradient, as they do on long batches."""

TOLERANCE = 1e-3
"""Relative difference of two sides' losses above which they do not do the same work."""


@dataclass(frozen=True)
class Shape:
    """Size of a problem."""

    tokens: int
    hidden: int
    vocab: int
    seed: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Return vocabulary and number format."""
        return f"V={self.vocab} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, eq=False)
class Problem:
    """Hidden states, head and targets; the first two want gradients."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets: Targets

    def part(self, tokens: int) -> "Problem":
        """Return the first tokens alone, to warm up on."""
        hidden = self.hidden_TH.detach()[:tokens].requires_grad_()
        return Problem(hidden, self.weight_VH, self.targets[:tokens])


Side = Callable[[Problem], float]
"""Forward and backward of a problem; returns the mean loss."""


def make_problem(shape: Shape) -> Problem:
    """Return a random problem; nothing in it is larger than the head."""
    torch.manual_seed(shape.seed)
    place: dict[str, Any] = {"device": shape.device, "dtype": shape.dtype}
    hidden_TH = torch.empty(shape.tokens, shape.hidden, **place).normal_(std=0.5)
    weight_VH = torch.empty(shape.vocab, shape.hidden, **place).normal_(std=0.05)
    first_T1 = torch.randint(shape.vocab, (shape.tokens, 1))
    ids_TK = (first_T1 + torch.arange(K) * (shape.vocab // K)) % shape.vocab
    logprobs_TK = torch.randn(shape.tokens, K).log_softmax(-1).sort(descending=True).values
    logprobs_TK = logprobs_TK + math.log(TOP_MASS)
    targets = build_targets(
        ids_TK,
        logprobs_TK,
        tail_T=torch.full((shape.tokens,), math.log(1 - TOP_MASS)),
        token_ids_T=ids_TK[:, 0],
        token_logprob_T=logprobs_TK[:, 0],
        weight_T=torch.ones(shape.tokens),
        vocab_size=shape.vocab,
    ).to(shape.device)
    return Problem(hidden_TH.requires_grad_(), weight_VH.requires_grad_(), targets)


def naive_loss(hidden_TH: Tensor, weight_VH: Tensor, targets: Targets) -> Tensor:
    """Return the summed forward KL over support and tail from a full log-softmax."""
    logq_TV = F.log_softmax(F.linear(hidden_TH, weight_VH).float(), dim=-1)
    logq_TS = logq_TV.gather(-1, targets.ids_TS)
    valid_TS = targets.valid_TS
    mass_T = logq_TS.exp().masked_fill(~valid_TS, 0.0).sum(-1)
    tail_T = torch.log1p(-mass_T.clamp(max=1 - 1e-6))
    logp_TS = targets.logprobs_TS.masked_fill(~valid_TS, 0.0)
    gap_TS = (logp_TS - logq_TS).masked_fill(~valid_TS, 0.0)
    tail_kl_T = targets.tail_T.exp() * (targets.tail_T - tail_T)
    return ((logp_TS.exp() * gap_TS).sum(-1) + tail_kl_T).sum()


def opd_side(problem: Problem, *, chunk: int) -> float:
    """Run `head_loss` forward and backward."""
    scale = 1 / len(problem.targets)
    loss, _ = head_loss(
        problem.hidden_TH,
        Head(weight_VH=problem.weight_VH),
        problem.targets,
        LOSS,
        chunk_tokens=chunk,
        scale=scale,
    )
    return _backward(problem, loss)


def naive_side(problem: Problem) -> float:
    """Run the naive loss forward and backward."""
    loss = naive_loss(problem.hidden_TH, problem.weight_VH, problem.targets)
    return _backward(problem, loss / len(problem.targets))


def floor_side(problem: Problem) -> float:
    """Run the three matmuls that no side can avoid; there is no loss."""
    hidden_TH, weight_VH = problem.hidden_TH.detach(), problem.weight_VH.detach()
    product_TV = F.linear(hidden_TH, weight_VH)
    both = product_TV @ weight_VH, product_TV.t() @ hidden_TH
    return float(both[0][0, 0] + both[1][0, 0])


def _backward(problem: Problem, loss: Tensor) -> float:
    problem.hidden_TH.grad = problem.weight_VH.grad = None
    loss.backward()  # type: ignore[no-untyped-call] # torch's gap
    return float(loss.detach())


SIDES: dict[str, Side] = {
    **{f"opd_{chunk}": partial(opd_side, chunk=chunk) for chunk in (128, 256, 1024, 4096)},
    "naive": naive_side,
    "floor": floor_side,
}


def extra_bytes(side: str, shape: Shape) -> int:
    """Return by how much a side's first run raises the peak memory of this process."""
    torch.set_num_threads(1)
    problem = make_problem(shape)
    before = peak_bytes()
    SIDES[side](problem)
    return peak_bytes() - before


def run(*, quick: bool, seed: int, device: str = "cpu") -> Result:
    """Measure each vocabulary; the figures are those of one chunk, the slowest case counts."""
    if device != "cpu":
        return run_on_device(device, quick=quick, seed=seed)
    if quick:
        cases = [
            _case(Shape(256, 128, 8_192, seed, dtype=dtype), ["opd_128"], memory_tokens=512)
            for dtype in (torch.float32, torch.bfloat16)
        ]
    else:
        both, large = ["opd_128", "opd_256"], ["opd_128"]
        cases = [
            _case(Shape(512, 640, 32_000, seed), both, memory_tokens=1024),
            _case(Shape(256, 640, 151_936, seed), large, memory_tokens=1024),
            _case(Shape(512, 640, 32_000, seed, dtype=torch.bfloat16), both, memory_tokens=1024),
        ]
    return Result(_figures(cases, "opd_128"), cases)


def _figures(cases: list[Case], side: str) -> dict[str, float]:
    """Return time against three matmuls, by number format, and memory against the naive loss."""
    low = [case for case in cases if "bfloat16" in str(case["case"])]
    full = [case for case in cases if case not in low]
    return {
        "floor_ratio": headline(full, f"{side}_vs_floor", max),
        "floor_ratio_bf16": headline(low, f"{side}_vs_floor", max),
        "naive_ratio": headline(full, f"{side}_vs_naive", max),
        "peak_ratio": headline(full, f"{side}_memory_vs_naive", max),
    }


def run_on_device(device: str, *, quick: bool, seed: int) -> Result:
    """Measure a large vocabulary on a GPU in wall time, in both number formats."""
    tokens, hidden, vocab = (1024, 256, 8_192) if quick else (16_384, 4096, 151_936)
    cases = [
        _device_case(Shape(tokens, hidden, vocab, seed, device, torch.bfloat16)),
        _device_case(Shape(tokens // 4, hidden // 4, vocab, seed, device, torch.float32)),
    ]
    return Result(_figures(cases, "opd_4096"), cases)


def _device_case(shape: Shape) -> Case:
    """Measure all sides; the naive one on a quarter of the tokens, for it needs them all."""
    ours, problem = ["opd_256", "opd_1024", "opd_4096"], make_problem(shape)
    losses = dict[str, float]()
    parts = {"naive": problem.part(shape.tokens // 4)}

    def once(side: str) -> int:
        part = parts.get(side, problem)
        losses[side] = SIDES[side](part)
        return len(part.targets)

    names, wait = [*ours, "naive", "floor"], waiting(shape.device)
    timings = alternate({name: partial(once, name) for name in names}, 1, wait)
    _require_same(SIDES["opd_1024"](parts["naive"]), losses["naive"])
    timings = alternate({name: partial(once, name) for name in names}, 5, wait)
    memory = {name: _device_bytes(name, parts["naive"]) for name in [*ours, "naive"]}
    case: Case = {
        "case": shape.name,
        "tokens": shape.tokens,
        "hidden": shape.hidden,
        "memory_tokens": len(parts["naive"].targets),
    }
    for name in names:
        case[f"{name}_wall_s"] = wall_seconds(timings[name])
    for name in ours:
        case[f"{name}_vs_naive"] = wall_ratio(timings[name], timings["naive"])
        case[f"{name}_vs_floor"] = wall_ratio(timings[name], timings["floor"])
        case[f"{name}_memory_vs_naive"] = memory[name] / memory["naive"]
    for name, extra in memory.items():
        case[f"{name}_extra_bytes"] = extra
    return case


def _device_bytes(side: str, problem: Problem) -> int:
    """Return by how much a side raises the peak memory of the GPU, gradients included."""
    problem.hidden_TH.grad = problem.weight_VH.grad = None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    SIDES[side](problem)
    return torch.cuda.max_memory_allocated() - before


def _case(shape: Shape, ours: list[str], *, memory_tokens: int) -> Case:
    """Measure time at a shape, and memory at more tokens with narrow hidden states."""
    larger = replace(shape, tokens=memory_tokens, hidden=MEMORY_HIDDEN)
    memory = {s: in_child("benchmarks.losses", extra_bytes, s, larger) for s in [*ours, "naive"]}
    problem, losses = make_problem(shape), dict[str, float]()

    def once(side: str) -> int:
        losses[side] = SIDES[side](problem)
        return shape.tokens

    names = [*ours, "naive", "floor"]
    for name in names:
        SIDES[name](problem.part(64))
    timings = alternate({name: partial(once, name) for name in names}, 3)
    case: Case = {
        "case": shape.name,
        "tokens": shape.tokens,
        "hidden": shape.hidden,
        "memory_tokens": larger.tokens,
        "memory_hidden": larger.hidden,
    }
    for name in names:
        case[f"{name}_cpu_s"] = cpu_seconds(timings[name])
        case[f"{name}_wall_s"] = wall_seconds(timings[name])
    for name in ours:
        _require_same(losses[name], losses["naive"])
        case[f"{name}_vs_naive"] = cost_ratio(timings[name], timings["naive"])
        case[f"{name}_vs_floor"] = cost_ratio(timings[name], timings["floor"])
        case[f"{name}_memory_vs_naive"] = memory[name] / max(memory["naive"], 1)
    for name, extra in memory.items():
        case[f"{name}_extra_bytes"] = extra
    return case


def _require_same(ours: float, other: float) -> None:
    if not abs(ours - other) <= TOLERANCE * abs(other):
        raise RuntimeError(f"the sides do not do the same work: loss {ours} against {other}")
