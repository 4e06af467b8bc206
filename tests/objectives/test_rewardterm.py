"""Rewards beside distillation: against a GRPO written out here, and each side alone bit for bit."""

import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from schemas.config.rewards.gates import LossGate
from schemas.errors import DataError
from tests.support.lossreference import (
    DIVERGENCES,
    build,
    loss_and_gradient,
    name_of,
    random_logits,
    raw_columns,
    rng,
)
from tests.support.runs import Cli
from tests.support.tiny import write_run

ROWS, VOCAB = 12, 20
POLICY = LossConfig(kind="policy_gradient", importance="none")
RL = LossConfig(kind="reverse_kl", rl_weight=1.0, distill_weight=0.0, clip_low=0.1, clip_high=0.3)


def problem() -> tuple[Tensor, Targets]:
    logits_TV, teacher_TV = random_logits(ROWS, VOCAB, seed=1), random_logits(ROWS, VOCAB, seed=2)
    tokens_T = torch.randint(0, VOCAB, (ROWS,), generator=rng(3))
    mu_TV = (logits_TV + random_logits(ROWS, VOCAB, seed=4)).log_softmax(-1)
    columns = raw_columns(teacher_TV, tokens_T, 4, mu_T=mu_TV.gather(-1, tokens_T[:, None])[:, 0])
    advantage_T = torch.randn(ROWS, generator=rng(5))
    advantage_T[::4] = math.nan
    return logits_TV, build(columns, advantage_T=advantage_T)


def grpo(logits_TV: Tensor, targets: Targets, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Value and gradient of GRPO's clipped objective, one token at a time, float64."""
    leaf_TV = logits_TV.detach().double().requires_grad_()
    assert targets.advantage_T is not None and targets.rollout_logprob_T is not None
    losses = []
    for t, y in enumerate(targets.token_ids_T.tolist()):
        advantage = float(targets.advantage_T[t])
        if math.isnan(advantage):
            losses.append(leaf_TV[t].sum() * 0.0)
            continue
        ratio = (leaf_TV[t].log_softmax(0)[y] - float(targets.rollout_logprob_T[t])).exp()
        inside = (
            ratio
            if 1 - low <= ratio.item() <= 1 + high
            else ratio.detach().clamp(1 - low, 1 + high)
        )
        losses.append(-torch.minimum(ratio * advantage, inside * advantage))
    loss_T = torch.stack(losses)
    return loss_T.detach(), torch.autograd.grad(loss_T.sum(), leaf_TV)[0]


def test_without_distillation_it_is_grpo() -> None:
    logits_TV, targets = problem()
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, RL)
    expected_T, expected_TV = grpo(logits_TV, targets, low=0.1, high=0.3)
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_TV.double(), expected_TV, rtol=1e-5, atol=1e-6)
    without = (grad_TV.abs().sum(-1) == 0) & ~targets.advantage_T.isnan()  # type: ignore[union-attr] # there are some
    _, values = token_losses(logits_TV, targets, RL)
    assert torch.equal(values["ratio_clipped"] == 1, without) and bool(without.any())
    assert torch.equal(loss_T[::4], torch.zeros(3)) and not bool(grad_TV[::4].any())


@pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
def test_each_side_alone_is_what_it_is_bit_for_bit_and_both_are_their_weighted_sum(
    loss: LossConfig,
) -> None:
    logits_TV, targets = problem()
    weights = {"rl_weight": 0.5, "distill_weight": 2.0}
    distilled, same = (
        loss_and_gradient(logits_TV, targets, loss.model_copy(update=changes))
        for changes in ({}, {"rl_weight": 0.0})
    )
    rewarded, alone = (
        loss_and_gradient(logits_TV, targets, one.model_copy(update=changes))
        for one, changes in (
            (RL, {"clip_low": 0.2, "clip_high": 0.2}),
            (loss, {"rl_weight": 1.0, "distill_weight": 0.0}),
        )
    )
    both = loss_and_gradient(logits_TV, targets, loss.model_copy(update=weights))
    for part in (0, 1):
        assert torch.equal(distilled[part], same[part])
        assert torch.equal(rewarded[part], alone[part])
        expected = 2.0 * distilled[part] + 0.5 * rewarded[part]
        torch.testing.assert_close(both[part], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rl", [0.0, 0.5])
@pytest.mark.parametrize("loss", [DIVERGENCES[0], POLICY], ids=name_of)
def test_a_gate_weighs_the_distillation_of_a_response_and_leaves_its_reward(
    loss: LossConfig, rl: float
) -> None:
    logits_TV, targets = problem()
    gate_T = torch.tensor([0.0, 0.25, 1.0]).repeat(ROWS // 3)
    shut = replace(targets, gate_T=gate_T).in_step(1, distill=0.5)
    both = loss.model_copy(update={"rl_weight": rl})
    distilled, rewarded = (
        loss_and_gradient(logits_TV, targets, one)
        for one in (loss, RL.model_copy(update={"clip_low": 0.2, "clip_high": 0.2}))
    )
    found = loss_and_gradient(logits_TV, shut, both)
    for part in (0, 1):
        weight = (0.5 * gate_T).reshape(-1, *[1] * part)
        expected = weight * distilled[part] + rl * rewarded[part]
        torch.testing.assert_close(found[part], expected, rtol=1e-5, atol=1e-6)
    _, values = token_losses(logits_TV, shut, both)
    assert torch.equal(values["distilled"], 0.5 * gate_T)
    assert torch.equal(values["gate_shut"], (gate_T == 0).float())


def test_large_advantages_are_compressed_and_small_ones_stay() -> None:
    logits_TV, targets = problem()
    gate = LossGate(compress_nats=0.5)
    _, plain_TV = loss_and_gradient(logits_TV, targets, POLICY)
    _, found_TV = loss_and_gradient(logits_TV, targets, POLICY.model_copy(update={"gate": gate}))
    now_T = logits_TV.log_softmax(-1).gather(-1, targets.token_ids_T[:, None])[:, 0]
    for t, advantage in enumerate((targets.token_logprob_T - now_T).tolist()):
        small = math.copysign(0.5 * math.log1p(abs(advantage) / 0.5), advantage)
        torch.testing.assert_close(
            found_TV[t], plain_TV[t] * small / advantage, rtol=1e-4, atol=1e-6
        )


def test_without_rewards_it_is_refused() -> None:
    logits_TV, targets = problem()
    with pytest.raises(DataError, match="needs the rewards of the round"):
        token_losses(logits_TV, build_without(targets), RL)


def build_without(targets: Targets) -> Targets:
    columns = raw_columns(random_logits(ROWS, VOCAB, seed=2), targets.token_ids_T, 4)
    return build({**columns, "rollout_logprob_T": targets.rollout_logprob_T})


def test_a_run_learns_from_rewards_beside_its_teacher(tmp_path: Path, cli: Cli) -> None:
    changes: dict[str, object] = {
        "eval": None,
        "run.rounds": 1,
        "reward.grader": "exact_match",
        "rollout.samples_per_prompt": 2,
    }
    losses = {}
    for name, more in {
        "both": {"loss.rl_weight": 1.0},
        "distilled": {},
        "rewarded": {"loss.rl_weight": 1.0, "loss.distill_weight": 0.0},
    }.items():
        config = write_run(
            tmp_path, changes={**changes, **more, "run.name": name}, file=f"{name}.toml"
        )
        for stage in ("rollout", "score", "grade", "train"):
            cli.ok(stage, "-c", config, "--round", "0")
        (metrics,) = (tmp_path / "store" / "runs" / name / "metrics").glob("*.parquet")
        losses[name] = pq.read_table(metrics).to_pylist()[0]["loss"]
    assert losses["both"] == pytest.approx(losses["distilled"] + losses["rewarded"], abs=1e-5)
    config = write_run(tmp_path, changes={**changes, "reward": None, "loss.rl_weight": 1.0})
    outcome = cli("plan", "-c", config)
    assert outcome.code == 2 and "[reward]" in outcome.stderr
