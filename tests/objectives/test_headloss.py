"""The chunked head against the plain one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.head import Head
from pipeline.objectives.diagnostics import DIAGNOSTICS
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets, build_targets
from schemas.config.loss import LossConfig
from schemas.errors import DataError

ROWS, HIDDEN, VOCAB, SCALE = 7, 5, 40, 0.25
LOSSES = [
    LossConfig(kind="forward_kl"),
    LossConfig(kind="reverse_kl"),
    LossConfig(kind="jsd", beta=0.3),
    LossConfig(kind="policy_gradient"),
]
RESPONSES = [
    LossConfig.model_validate({"kind": "policy_gradient", **keys})
    for keys in (
        {"importance": "geometric", "policy": {"clip_low": 0.1, "clip_high": 0.1}},
        {"importance": "sequence", "policy": {"beyond_cap": "mask", "mix": 0.9}},
        {"policy": {"discount": 0.9, "baseline": "before", "standardize": True}},
        {"importance": "none", "policy": {"baseline": "response"}},
        {"weights": {"entropy_share": 0.5, "prefix": 0.5, "least_divergence": 0.1}},
    )
] + [
    LossConfig.model_validate({"kind": kind, "weights": {"rescale": True, **keys}})
    for kind in ("forward_kl", "reverse_kl")
    for keys in ({"divergence_share": 0.4}, {"divergence_clip": 0.05, "prefix": 1.0})
]
"""Objectives of whole responses."""


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_targets(rows: int = ROWS, vocab: int = VOCAB) -> Targets:
    log_p_TV = (2 * random(rows, vocab, seed=1)).log_softmax(-1)
    tokens_T = torch.arange(rows) * 3 % vocab
    token_logprob_T = log_p_TV.gather(-1, tokens_T[:, None])[:, 0]
    values_TV, ids_TV = log_p_TV.sort(-1, descending=True)
    weight_T = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 0.0, 1.0])
    targets = build_targets(
        ids_TV[:, :4],
        values_TV[:, :4],
        tail_T=values_TV[:, 4:].logsumexp(-1),
        token_ids_T=tokens_T,
        token_logprob_T=token_logprob_T,
        weight_T=weight_T.repeat(rows // ROWS + 1)[:rows],
        rollout_logprob_T=token_logprob_T - 0.1,
        vocab_size=vocab,
    )
    return replace(targets, row_T=torch.arange(rows) // 3)


def make_inputs(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head]:
    hidden_TH = random(ROWS, HIDDEN, seed=2).to(dtype).requires_grad_()
    weight_VH = random(VOCAB, HIDDEN, seed=3).to(dtype).requires_grad_()
    bias_V = random(VOCAB, seed=4).to(dtype).requires_grad_() if bias else None
    return hidden_TH, Head(weight_VH, bias_V)


def parameters(hidden_TH: Tensor, head: Head) -> list[Tensor]:
    both = [hidden_TH, head.weight_VH] + ([] if head.bias_V is None else [head.bias_V])
    return [tensor for tensor in both if tensor.requires_grad]


def plain(
    hidden_TH: Tensor, head: Head, targets: Targets, loss: LossConfig
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    """Loss, weighted diagnostics and gradients with all logits at once, head written out."""
    logits_TV = F.linear(hidden_TH, head.weight_VH, head.bias_V).float() * head.scale
    if head.softcap is not None:
        logits_TV = head.softcap * torch.tanh(logits_TV / head.softcap)
    loss_T, values = token_losses(logits_TV, targets, loss)
    total = (loss_T * targets.weight_T).sum() * SCALE
    sums = {name: (value_T * targets.weight_T).sum() for name, value_T in values.items()}
    return total.detach(), sums, torch.autograd.grad(total, parameters(hidden_TH, head))


def assert_equals_plain(
    hidden_TH: Tensor,
    head: Head,
    loss: LossConfig,
    chunk_tokens: int,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> None:
    targets = make_targets()
    expected, expected_sums, expected_gradients = plain(hidden_TH, head, targets, loss)
    total, sums = head_loss(hidden_TH, head, targets, loss, chunk_tokens=chunk_tokens, scale=SCALE)
    assert total.shape == () and total.dtype == torch.float32
    torch.testing.assert_close(total.detach(), expected, rtol=rtol, atol=atol)
    gradients = torch.autograd.grad(total, parameters(hidden_TH, head))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=atol)
    assert set(sums) == set(DIAGNOSTICS)
    for name, value in sums.items():
        torch.testing.assert_close(value, expected_sums[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("chunk_tokens", [1, 3, ROWS, ROWS + 5])
def test_loss_gradients_and_diagnostics_do_not_depend_on_the_chunks(
    loss: LossConfig, chunk_tokens: int
) -> None:
    assert_equals_plain(*make_inputs(), loss, chunk_tokens)


@pytest.mark.parametrize(
    "loss", RESPONSES, ids=lambda loss: loss.model_dump_json(exclude_defaults=True)[:60]
)
def test_responses_are_seen_whole_though_chunks_cut_them(loss: LossConfig) -> None:
    for chunk_tokens in (1, 2, ROWS):
        assert_equals_plain(*make_inputs(), loss, chunk_tokens)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("multiplier", [1.0, 0.3])
def test_bias_soft_cap_and_multiplier_are_part_of_the_head(
    softcap: float | None, multiplier: float
) -> None:
    hidden_TH, head = make_inputs(bias=True)
    head = replace(head, softcap=softcap, scale=multiplier)
    assert_equals_plain(hidden_TH, head, LOSSES[0], 3)


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_works_and_keeps_its_types(bias: bool) -> None:
    hidden_TH, head = make_inputs(bias=bias, dtype=torch.bfloat16)
    assert_equals_plain(hidden_TH, head, LOSSES[0], 3, rtol=3e-2, atol=2e-2)


def test_the_head_gradient_of_bfloat16_is_summed_in_float32() -> None:
    """One small term per chunk: a bfloat16 sum would stop growing at 256 times the term."""
    rows = 1024
    hidden_TH = torch.ones(rows, 1, dtype=torch.bfloat16)
    head = Head(torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True))
    ones_T = torch.ones(rows)
    targets = build_targets(
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.zeros(rows, 1),
        tail_T=ones_T * -torch.inf,
        token_ids_T=torch.zeros(rows, dtype=torch.int64),
        token_logprob_T=ones_T * 0,
        weight_T=ones_T,
        vocab_size=2,
    )
    total, _ = head_loss(hidden_TH, head, targets, LOSSES[0], chunk_tokens=1, scale=1.0)
    (gradient,) = torch.autograd.grad(total, head.weight_VH)
    assert gradient.flatten().tolist() == [-rows / 2, rows / 2]


def test_a_float32_head_works_on_bfloat16_hidden_states() -> None:
    hidden_TH, head = make_inputs(bias=True)
    low_TH = hidden_TH.detach().bfloat16().requires_grad_()
    total, _ = head_loss(low_TH, head, make_targets(), LOSSES[0], chunk_tokens=3, scale=SCALE)
    found = torch.autograd.grad(total, parameters(low_TH, head))
    _, _, expected = plain(hidden_TH, head, make_targets(), LOSSES[0])
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, *[torch.float32] * 2]
    for gradient, expected_gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient.float(), expected_gradient, rtol=3e-2, atol=3e-2)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_theirs() -> None:
    hidden_TH, head = make_inputs()
    frozen = Head(head.weight_VH.detach())
    assert_equals_plain(hidden_TH, frozen, LOSSES[0], 3)
    assert_equals_plain(hidden_TH.detach(), head, LOSSES[0], 3)


def test_a_shared_embedding_gets_the_sum_of_both_gradients() -> None:
    _, head = make_inputs()
    weight_VH, targets = head.weight_VH, make_targets()
    hidden_TH = F.embedding(targets.token_ids_T, weight_VH)
    total, _ = head_loss(hidden_TH, head, targets, LOSSES[0], chunk_tokens=3, scale=SCALE)
    (gradient,) = torch.autograd.grad(total, weight_VH)
    hidden_TH = F.embedding(targets.token_ids_T, weight_VH)
    loss_T, _ = token_losses(F.linear(hidden_TH, weight_VH), targets, LOSSES[0])
    (expected,) = torch.autograd.grad((loss_T * targets.weight_T).sum() * SCALE, weight_VH)
    torch.testing.assert_close(gradient, expected)


def test_an_outer_factor_scales_the_gradients_which_are_handed_out_once() -> None:
    gradients: list[Tensor] = []
    for factor in (1.0, 0.5):
        hidden_TH, head = make_inputs()
        total, _ = head_loss(
            hidden_TH, head, make_targets(), LOSSES[0], chunk_tokens=3, scale=SCALE
        )
        gradients += torch.autograd.grad(total * factor, hidden_TH, retain_graph=True)
    torch.testing.assert_close(gradients[1], gradients[0] / 2)
    with pytest.raises(RuntimeError, match="handed out"):
        total.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped


@pytest.mark.parametrize("rows", [0, ROWS])
def test_without_trained_positions_the_zero_loss_stays_connected(rows: int) -> None:
    hidden_TH, head = make_inputs(bias=True)
    part_TH = hidden_TH[:rows]
    targets = replace(make_targets()[:rows], weight_T=torch.zeros(rows))
    total, sums = head_loss(part_TH, head, targets, LOSSES[0], chunk_tokens=3, scale=SCALE)
    assert float(total.detach()) == 0.0 and set(sums) == set(DIAGNOSTICS)
    assert all(float(value) == 0.0 for value in sums.values())
    for gradient in torch.autograd.grad(total, parameters(hidden_TH, head)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_untrained_positions_may_hold_nan_hidden_states() -> None:
    hidden_TH, head = make_inputs()
    targets = make_targets()
    spoiled_TH = hidden_TH.detach().clone()
    spoiled_TH[targets.weight_T == 0] = torch.nan
    spoiled_TH.requires_grad_()
    total, _ = head_loss(spoiled_TH, head, targets, LOSSES[0], chunk_tokens=3, scale=SCALE)
    gradients = torch.autograd.grad(total, parameters(spoiled_TH, head))
    expected, _, expected_gradients = plain(hidden_TH, head, targets, LOSSES[0])
    torch.testing.assert_close(total.detach(), expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_hidden_states_of_another_length_are_refused() -> None:
    hidden_TH, head = make_inputs()
    with pytest.raises(DataError, match="7 target positions for 6"):
        head_loss(hidden_TH[:6], head, make_targets(), LOSSES[0], chunk_tokens=3, scale=1.0)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Records the operations run and the most rows of any tensor whose last size is `vocab`."""

    def __init__(self, vocab: int) -> None:
        """Watch tensors whose last size is `vocab`."""
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.vocab, self.rows, self.operations = vocab, 0, set[str]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and record it."""
        out = func(*args, **(kwargs or {}))
        self.operations.add(str(func))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[-1] == self.vocab:
                self.rows = max(self.rows, tensor.numel() // self.vocab)
        return out


@pytest.mark.parametrize("loss", [*LOSSES, RESPONSES[0]], ids=lambda loss: loss.importance)
def test_no_more_than_one_chunk_of_logits_ever_exists(loss: LossConfig) -> None:
    rows = 20 * ROWS
    hidden_TH, head = random(rows, HIDDEN, seed=5).requires_grad_(), make_inputs(bias=True)[1]
    targets = make_targets(rows)
    with Largest(VOCAB) as seen:
        total, _ = head_loss(hidden_TH, head, targets, loss, chunk_tokens=8, scale=SCALE)
        total.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert seen.rows == 8
    with Largest(VOCAB) as seen:
        plain(hidden_TH, head, targets, loss)
    assert seen.rows == rows  # the probe does see the logits of the plain computation


def test_without_autograd_nothing_is_differentiated() -> None:
    hidden_TH, head = make_inputs()
    expected, sums, _ = plain(hidden_TH, head, make_targets(), LOSSES[0])
    with torch.no_grad(), Largest(VOCAB) as seen:
        total, found = head_loss(
            hidden_TH, head, make_targets(), LOSSES[0], chunk_tokens=3, scale=SCALE
        )
    assert not total.requires_grad
    assert not any("backward" in name or "addmm_" in name for name in seen.operations)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["forward_kl"], sums["forward_kl"])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_bfloat16_products_keep_float32_accuracy_where_student_and_teacher_are_near(
    loss: LossConfig,
) -> None:
    """At a KL of some 1e-4 nats, logits rounded to bfloat16 turn the gradient by 30 degrees."""
    rows, hidden, vocab = 64, 32, 2000
    hidden_TH = random(rows, hidden, seed=11).bfloat16()
    weight_VH = random(vocab, hidden, seed=12).bfloat16().requires_grad_()
    exact_TV = F.linear(hidden_TH.double(), weight_VH.detach().double())
    log_p_TV = (exact_TV + 0.02 * random(rows, vocab, seed=13)).log_softmax(-1)
    values_TK, ids_TK = log_p_TV.topk(16)
    tokens_T = exact_TV.softmax(-1).multinomial(1)[:, 0]
    token_logprob_T = log_p_TV.gather(-1, tokens_T[:, None])[:, 0]
    targets = build_targets(
        ids_TK,
        values_TK,
        tail_T=torch.log1p(-values_TK.exp().sum(-1)),
        token_ids_T=tokens_T,
        token_logprob_T=token_logprob_T,
        weight_T=torch.ones(rows),
        rollout_logprob_T=exact_TV.log_softmax(-1).gather(-1, tokens_T[:, None])[:, 0],
        vocab_size=vocab,
    )

    def hidden_gradient(logits_TV: Tensor) -> Tensor:
        logits_TV = logits_TV.detach().requires_grad_()
        total = token_losses(logits_TV, targets, loss)[0].sum()
        (of_logits_TV,) = torch.autograd.grad(total, logits_TV)
        return of_logits_TV.double() @ weight_VH.detach().double()

    def cosine(found_TH: Tensor) -> float:
        return float(F.cosine_similarity(found_TH.double().flatten(), expected.flatten(), dim=0))

    expected = hidden_gradient(exact_TV.float())
    student_TH = hidden_TH.clone().requires_grad_()
    total, _ = head_loss(student_TH, Head(weight_VH), targets, loss, chunk_tokens=30, scale=1.0)
    (found_TH,) = torch.autograd.grad(total, student_TH)
    rounded = F.linear(hidden_TH, weight_VH).float()
    assert cosine(found_TH) > 0.9999
    assert cosine(hidden_gradient(rounded)) < 0.995
