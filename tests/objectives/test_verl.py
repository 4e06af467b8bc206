"""Keys of verl's vocabulary: what docs/rewards.md says of each, run on a batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.objectives.headloss import head_loss
from pipeline.objectives.tempering import with_temperature
from schemas.config.loss import LossConfig
from tests.objectives.test_headloss import make_inputs, make_targets
from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
OPD = {"kind": "opd"}

KEYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "adv_estimator: opd": ('`loss.kind = "opd"`', OPD, {"kind": "policy_gradient"}),
    "distillation_type: forward_kl": ("of the same name", {"kind": "forward_kl"}, {}),
    "distillation_type: reverse_kl": ("of the same name", {"kind": "reverse_kl"}, {}),
    "distillation_type: gkd": ("of the same name", {"kind": "gkd", "beta": 0.3}, {}),
    "distillation_beta": ("`loss.beta`", {"kind": "gkd", "beta": 1.0}, {"kind": "reverse_kl"}),
    "distillation_temperature": ("`loss.temperature`", {"kind": "gkd", "temperature": 2.0}, {}),
    "hybrid_lambda_rl": ("`loss.rl_weight`", {**OPD, "rl_weight": 0.5, "distill_weight": 0.0}, {}),
    "hybrid_lambda_distill": ("`loss.distill_weight`", {**OPD, "distill_weight": 2.0}, {}),
    "kl_type: k1, as an advantage": ('"advantage"', {**OPD, "policy": {}}, OPD),
    **{
        f"kl_type: {name}": ("`loss.policy.kl_type`", {**OPD, "policy": {"kl_type": name}}, OPD)
        for name in ("k2", "mse", "k1+", "kl+", "k3+", "low_var_kl+")
    },
    "kl_type: full": ('`loss.kind = "reverse_kl"`', {"kind": "reverse_kl"}, {}),
    "kl_type: abs": ('`"tvd"`', {"kind": "tvd"}, {}),
    "clip_ratio_low": (
        "`loss.policy.clip_low`",
        {**OPD, "policy": {"clip_low": 0.2, "clip_high": 0.3}},
        {},
    ),
    "clip_ratio_high": ("`clip_high`", {**OPD, "policy": {"clip_high": 0.3}}, {}),
    "loss_mode: gspo": (
        '`loss.importance = "geometric"`',
        {**OPD, "importance": "geometric", "policy": {"clip_low": 3e-4, "clip_high": 4e-4}},
        {},
    ),
}
"""verl's key → what the page says of it, ours, and an objective of the same gradient."""


def gradients(fields: dict[str, Any]) -> list[torch.Tensor]:
    """Return what a batch's loss gives hidden states and head."""
    hidden_TH, head = make_inputs()
    loss = LossConfig.model_validate(fields)
    targets = replace(make_targets(), advantage_T=torch.ones(len(hidden_TH)))
    if loss.temperature != 1.0:
        log_z_T = torch.full((len(hidden_TH),), 3.0)
        targets = with_temperature(
            targets, loss.temperature, log_z_T, vocab_size=len(head.weight_VH)
        )
    total, _ = head_loss(hidden_TH, head, targets, loss, chunk_tokens=3, scale=1.0)
    assert bool(total.isfinite())
    return list(torch.autograd.grad(total, [hidden_TH, head.weight_VH]))


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_ours_which_trains(key: str) -> None:
    told, ours, same = KEYS[key]
    name, _, value = key.split(", ")[0].partition(": ")
    rows = [row for row in PAGE.splitlines() if row.startswith("| `") and told in row]
    assert any(f"`{name}" in row and f"{value}`" in row for row in rows)
    found = gradients(ours)
    assert all(bool(part.isfinite().all()) and bool(part.any()) for part in found)
    for part, expected in zip(found, gradients(same or ours), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3", "kl", "low_var_kl", "full", "abs"])
def test_estimators_that_are_no_losses_are_refused_and_the_page_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="is no loss"):
        LossConfig.model_validate({**OPD, "policy": {"kl_type": name}})
    assert "as losses are refused" in PAGE
