"""The policy gradient over whole responses and over samples, by enumeration in float64."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.sides import Sides, plain_view
from pipeline.objectives.tokens.policy import policy_gradient
from schemas.config.loss import LossConfig
from schemas.config.objective.policy import PolicySection
from tests.objectives.test_estimators import samples_of
from tests.objectives.test_estimators import targets_of as position
from tests.support.lossreference import random_logits
from tests.support.responses import (
    Language,
    expected_gradient,
    language,
    shuffled,
    targets_of,
    token_losses_of,
)

V, UNCUT = 12, 1e30


def policy(*, importance: str = "none", cap: float = UNCUT, **keys: object) -> LossConfig:
    return LossConfig.model_validate(
        {"kind": "opd", "importance": importance, "importance_cap": cap, "policy": keys}
    )


def advantages(text: Language) -> Tensor:
    """Log p(y) − log q(y) of each token."""
    return text.of_tokens(text.log_p_NV - text.student_NV.log_softmax(-1))


def chances(text: Language, log_NV: Tensor) -> Tensor:
    """The probability of each response."""
    return text.rows(text.of_tokens(log_NV)).exp()


def by_definition(text: Language, discount: float) -> Tensor:
    """Σ of q(response) · −(its discounted later advantages) · ∇log q(y), token by token."""
    leaf_NV = text.student_NV.clone().requires_grad_()
    log_q_T, gain_T = text.of_tokens(leaf_NV.log_softmax(-1)), advantages(text)
    total = torch.zeros(()).double()
    for row, chance in enumerate(chances(text, text.student_NV.log_softmax(-1))):
        tokens = (text.row_T == row).nonzero()[:, 0].tolist()
        for place, token in enumerate(tokens):
            later = sum(discount**n * gain_T[u] for n, u in enumerate(tokens[place:]))
            total = total - chance * later * log_q_T[token]
    return torch.autograd.grad(total, leaf_NV)[0]


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("baseline", ["none", "before"])
def test_with_a_discount_and_a_causal_baseline_the_gradient_is_that_of_the_returns(
    discount: float, baseline: str
) -> None:
    text = language(1, drift=0.0)
    loss = policy(discount=discount, baseline=baseline)
    found_NV = expected_gradient(text, loss, chance_B=chances(text, text.log_mu_NV))
    torch.testing.assert_close(found_NV, by_definition(text, discount), rtol=0, atol=1e-10)


def test_without_a_discount_it_is_the_kl_at_given_prefixes_and_with_1_that_of_responses() -> None:
    text = language(2, drift=0.0)
    leaf_NV = text.student_NV.clone().requires_grad_()
    log_q_NV = leaf_NV.log_softmax(-1)
    log_q_B, log_p_B = (text.rows(text.of_tokens(x)) for x in (log_q_NV, text.log_p_NV))
    kl = (log_q_B.exp() * (log_q_B - log_p_B)).sum()
    (whole_NV,) = torch.autograd.grad(kl, leaf_NV, retain_graph=True)
    torch.testing.assert_close(by_definition(text, 1.0), whole_NV, rtol=0, atol=1e-10)
    reach_N = torch.zeros(len(leaf_NV)).double()
    reach_N.index_add_(0, text.node_T, log_q_B.exp().detach()[text.row_T])
    kl_N = (log_q_NV.exp() * (log_q_NV - text.log_p_NV)).sum(-1)
    (single_NV,) = torch.autograd.grad((reach_N * kl_N).sum(), leaf_NV)
    torch.testing.assert_close(by_definition(text, 0.0), single_NV, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("discount", "baseline"), product([0.0, 1.0], ["none", "before"]))
def test_weights_of_whole_responses_make_another_policys_samples_the_students(
    discount: float, baseline: str
) -> None:
    text = language(3)
    loss = policy(importance="sequence", discount=discount, baseline=baseline)
    found_NV = expected_gradient(text, loss, chance_B=chances(text, text.log_mu_NV))
    torch.testing.assert_close(found_NV, by_definition(text, discount), rtol=0, atol=1e-10)
    for other in ("token", "geometric", "none"):  # they leave prefixes as they were sampled
        biased = policy(importance=other, discount=discount, baseline=baseline)
        biased_NV = expected_gradient(text, biased, chance_B=chances(text, text.log_mu_NV))
        assert float((biased_NV - by_definition(text, discount)).abs().max()) > 1e-3


def test_the_mean_of_the_other_tokens_is_a_baseline_with_a_bias() -> None:
    text = language(4, drift=0.0)
    loss = policy(baseline="response")
    found_NV = expected_gradient(text, loss, chance_B=chances(text, text.log_mu_NV))
    assert float((found_NV - by_definition(text, 0.0)).abs().max()) > 1e-3


def one_by_one(text: Language, trained_T: Tensor, loss: LossConfig) -> tuple[Tensor, ...]:
    """Loss of each token, and what ∇log q(y) is multiplied by, from the definitions."""
    keys, log_q_T = loss.policy, text.of_tokens(text.student_NV.log_softmax(-1))
    gain_T, log_ratio_T = advantages(text), log_q_T - text.of_tokens(text.log_mu_NV)
    found, pulls = [], []
    for token, row in enumerate(text.row_T.tolist()):
        tokens = (text.row_T == row).nonzero()[:, 0].tolist()
        of_row = [t for t in tokens if trained_T[t]]

        def own(t: int) -> float:
            ratio = math.exp(gain_T[t])
            gain = math.log(keys.mix * ratio + 1 - keys.mix)
            clip = loss.advantage_clip or math.inf
            return min(max(gain, -clip), clip) if trained_T[t] else 0.0

        def based(t: int, tokens: list[int] = tokens, of_row: list[int] = of_row) -> float:
            returned = {
                u: sum(keys.discount ** (w - u) * own(w) for w in tokens if w >= u) for u in of_row
            }
            earlier = [own(u) for u in of_row if u < t]
            others = [returned[u] for u in of_row if u != t]
            chosen = {"none": [], "before": earlier, "response": others}[keys.baseline]
            return returned[t] - sum(chosen) / max(1, len(chosen))

        if not trained_T[token]:
            found.append(0.0)
            pulls.append(0.0)
            continue
        square = sum(based(t) ** 2 for t in of_row) / len(of_row)
        gain = based(token) / (max(math.sqrt(square), 1e-6) if keys.standardize else 1.0)
        ratios = [float(log_ratio_T[t]) for t in of_row]
        levels = {"token": float(log_ratio_T[token]), "sequence": sum(ratios)}
        levels["geometric"] = sum(ratios) / len(ratios)
        if loss.importance == "none":
            found.append(-gain * float(log_q_T[token]))
            pulls.append(-gain)
            continue
        ratio = math.exp(levels[loss.importance])
        weight = min(ratio, loss.importance_cap)
        if ratio < keys.importance_floor or (keys.beyond_cap == "mask" and weight < ratio):
            weight = 0.0
        low = 1 - keys.clip_low if keys.clip_low else 0.0
        high = 1 + keys.clip_high if keys.clip_high else math.inf
        stopped = (gain > 0 and ratio > high) or (gain < 0 and ratio < low)
        found.append(-gain * (min(max(ratio, low), high) if stopped else weight))
        pulls.append(0.0 if stopped else -gain * weight)
    return torch.tensor([found, pulls], dtype=torch.float64).unbind()


KEYS = st.fixed_dictionaries(
    {
        "mix": st.sampled_from([1.0, 0.9, 0.2]),
        "discount": st.sampled_from([0.0, 0.5, 1.0]),
        "baseline": st.sampled_from(["none", "before", "response"]),
        "standardize": st.booleans(),
    }
)
RATIOS = st.fixed_dictionaries(
    {
        "clip_low": st.sampled_from([None, 0.2, 1.0]),
        "clip_high": st.sampled_from([None, 0.1]),
        "beyond_cap": st.sampled_from(["truncate", "mask"]),
        "importance_floor": st.sampled_from([0.0, 0.6]),
    }
)
LEVELS = st.sampled_from(["none", "token", "geometric", "sequence"])


@settings(max_examples=60, deadline=None)
@given(
    keys=KEYS,
    ratios=RATIOS,
    level=LEVELS,
    cap=st.sampled_from([1.2, UNCUT]),
    clip=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10**6),
    masked=st.sets(st.integers(0, 40)),
)
def test_each_token_has_the_loss_and_the_gradient_of_the_definitions(
    keys: dict[str, object],
    ratios: dict[str, object],
    level: str,
    cap: float,
    clip: float | None,
    seed: int,
    masked: set[int],
) -> None:
    text = language(seed)
    trained_T = torch.tensor([t not in masked for t in range(len(text.token_T))])
    trained_T &= text.row_T != 3  # of which nothing is trained
    of_ratios = {} if level == "none" else ratios
    fields = {"importance": level, "importance_cap": cap, "advantage_clip": clip}
    loss = LossConfig.model_validate({"kind": "opd", **fields, "policy": {**keys, **of_ratios}})
    leaf_TV = text.student_NV[text.node_T].requires_grad_()
    loss_T = token_losses_of(leaf_TV, targets_of(text, trained_T.double()), loss)
    loss_T = loss_T.where(trained_T, 0.0)
    expected_T, pull_T = one_by_one(text, trained_T, loss)
    torch.testing.assert_close(loss_T.detach(), expected_T, rtol=0, atol=1e-10)
    (found_TV,) = torch.autograd.grad(loss_T.sum(), leaf_TV)
    of_log_q_TV = torch.eye(3).double()[text.token_T] - leaf_TV.detach().softmax(-1)
    torch.testing.assert_close(found_TV, pull_T[:, None] * of_log_q_TV, rtol=0, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(15)), rows=st.integers(1, 15), keys=KEYS, level=LEVELS)
def test_a_response_says_the_same_in_any_batch(
    order: list[int], rows: int, keys: dict[str, object], level: str
) -> None:
    text = language(5)
    loss = LossConfig.model_validate({"kind": "opd", "importance": level, "policy": keys})
    targets, logits_TV = targets_of(text), text.student_NV[text.node_T]
    whole_T = token_losses_of(logits_TV, targets, loss)
    part, part_TV = shuffled(targets, logits_TV, order[:rows])
    index = torch.cat([(text.row_T == row).nonzero()[:, 0] for row in order[:rows]])
    torch.testing.assert_close(
        token_losses_of(part_TV, part, loss), whole_T[index], rtol=0, atol=1e-12
    )


# --- one position: bounded advantages, estimators, samples ---


def over_ids(log_q_V: Tensor, log_p_V: Tensor, loss: LossConfig) -> Tensor:
    """Σ_v −q·A ∇log q by the student's log-probabilities, where A is a constant."""
    ratio_V = (log_p_V - log_q_V.detach()).exp()
    gain_V = (loss.policy.mix * ratio_V + 1 - loss.policy.mix).log()
    if loss.advantage_clip is not None:
        gain_V = gain_V.clamp(-loss.advantage_clip, loss.advantage_clip)
    return -(gain_V * log_q_V.exp()).sum()


def every_token(logits_V: Tensor, log_p_V: Tensor, log_mu_V: Tensor, loss: LossConfig) -> Tensor:
    """Losses [V] of each token that may have been drawn."""
    text = Language(
        node_T=torch.zeros(V, dtype=torch.int64),
        token_T=torch.arange(V),
        row_T=torch.arange(V),
        student_NV=logits_V[None],
        log_p_NV=log_p_V[None],
        log_mu_NV=log_mu_V[None],
    )
    return token_losses_of(logits_V.expand(V, V), targets_of(text), loss)


@pytest.mark.parametrize("mix", [0.05, 0.5, 0.9])
def test_a_bounded_advantage_has_the_gradient_of_a_jsd_over_1_minus_mix(mix: float) -> None:
    logits_V, teacher_V, noise_V = random_logits(3, V, seed=7)
    log_p_V, log_mu_V = teacher_V.log_softmax(0), (logits_V + 0.5 * noise_V).log_softmax(0)
    leaf_V = logits_V.clone().requires_grad_()
    loss_V = every_token(leaf_V, log_p_V, log_mu_V, policy(importance="token", mix=mix))
    assert float(loss_V.detach().min()) > -math.log1p(1e3)
    (found_V,) = torch.autograd.grad((log_mu_V.exp() * loss_V).sum(), leaf_V, retain_graph=True)
    q_V, p_V = leaf_V.softmax(0), log_p_V.exp()
    m_V = mix * p_V + (1 - mix) * q_V
    jsd = mix * (p_V * (p_V / m_V).log()).sum() + (1 - mix) * (q_V * (q_V / m_V).log()).sum()
    (expected_V,) = torch.autograd.grad(jsd / (1 - mix), leaf_V)
    torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-10)


def test_a_bounded_advantage_of_what_the_teacher_forbids_is_log_1_minus_mix() -> None:
    log_p_V = torch.tensor([0.0, -1e30]).double()
    for mix, least in [(0.9, math.log(0.1)), (1.0, -30.0 - math.log(0.5))]:
        text = Language(
            node_T=torch.zeros(1, dtype=torch.int64),
            token_T=torch.ones(1, dtype=torch.int64),
            row_T=torch.zeros(1, dtype=torch.int64),
            student_NV=torch.zeros(1, 2).double(),
            log_p_NV=log_p_V[None],
            log_mu_NV=torch.zeros(1, 2).double(),
        )
        (loss,) = token_losses_of(torch.zeros(1, 2).double(), targets_of(text), policy(mix=mix))
        assert float(loss) == pytest.approx(least * math.log(2.0), abs=1e-9)


@pytest.mark.parametrize("importance", ["none", "token", "geometric", "sequence"])
@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_a_token_that_the_student_forbids_by_now_teaches_nothing(
    importance: str, discount: float
) -> None:
    text = language(6)
    logits_TV = text.student_NV[text.node_T]
    logits_TV[4, text.token_T[4]] = -math.inf
    logits_TV.requires_grad_()
    loss = policy(importance=importance, mix=0.9, discount=discount)
    loss_T = token_losses_of(logits_TV, targets_of(text), loss)
    (found_TV,) = torch.autograd.grad(loss_T.sum(), logits_TV)
    assert bool(loss_T.isfinite().all()) and bool(found_TV.isfinite().all())
    assert not bool(found_TV[4].any())
    assert discount or float(loss_T[4].detach()) == 0.0


@pytest.mark.parametrize("kl_type", ["k2", "k1+", "k3+", "mse", "low_var_kl+"])
@pytest.mark.parametrize("importance", ["none", "token"])
def test_estimators_differ_in_value_and_have_one_gradient(kl_type: str, importance: str) -> None:
    logits_V, teacher_V, noise_V = random_logits(3, V, seed=8)
    log_p_V, log_mu_V = teacher_V.log_softmax(0), (logits_V + 0.5 * noise_V).log_softmax(0)
    log_mu_V = logits_V.log_softmax(0) if importance == "none" else log_mu_V
    gradients = []
    for kind in (kl_type, "advantage"):
        leaf_V = logits_V.clone().requires_grad_()
        loss_V = every_token(leaf_V, log_p_V, log_mu_V, policy(importance=importance, kl_type=kind))
        mean = (log_mu_V.exp() * loss_V).sum()
        gradients.append(torch.autograd.grad(mean, leaf_V)[0])
        if kind == kl_type:
            value = float(mean.detach())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)
    log_q_V = logits_V.log_softmax(0)
    r_V = log_q_V - log_p_V
    half = float((log_q_V.exp() * r_V.square()).sum() / 2)
    kl = float((log_q_V.exp() * r_V).sum())
    assert value == pytest.approx(half if kl_type in ("k2", "mse") else kl, abs=1e-10)


@pytest.mark.parametrize("name", ["k1", "kl", "k3", "low_var_kl", "abs", "full"])
def test_an_estimator_whose_own_gradient_is_another_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match="is no loss: .*(write|Write)"):
        PolicySection.model_validate({"kl_type": name})


def test_the_reasons_are_true() -> None:
    logits_V, teacher_V = random_logits(2, V, seed=9)
    log_p_V = teacher_V.log_softmax(0)
    leaf_V = logits_V.clone().requires_grad_()
    log_q_V = leaf_V.log_softmax(0)
    q_V, r_V = log_q_V.exp(), log_q_V - log_p_V

    def gradient(value: Tensor) -> Tensor:
        found: tuple[Tensor, ...] = torch.autograd.grad(value, leaf_V, retain_graph=True)
        return found[0]

    drawn_V = q_V.detach()
    for estimate_V, whole in [
        (r_V, torch.zeros(()).double() * q_V.sum()),
        (torch.expm1(-r_V) + r_V, (log_p_V.exp() * -r_V).sum()),
        (r_V.square() / 2, (q_V * r_V).sum()),
        (r_V.abs(), (q_V - log_p_V.exp()).abs().sum()),
    ]:
        found_V = gradient((drawn_V * estimate_V).sum())
        torch.testing.assert_close(found_V, gradient(whole), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("k", "places", "buckets"), [(0, 1, 1), (4, 1, 3), (4, 3, 1), (11, 5, 2)])
@pytest.mark.parametrize(("mix", "clip"), [(1.0, None), (0.6, None), (1.0, 0.4), (0.9, 0.5)])
def test_over_a_sample_the_expected_gradient_is_that_over_all_ids(
    k: int, places: int, buckets: int, mix: float, clip: float | None
) -> None:
    loss = policy(importance="token", mix=mix).model_copy(update={"advantage_clip": clip})
    assert loss.samples == ("student",)
    logits_V, noise_V, teacher_V = random_logits(3, V, seed=k + places)
    log_p_V, log_mu_V = teacher_V.log_softmax(0), (logits_V + 0.3 * noise_V).log_softmax(0)
    found, found_V = torch.zeros(()).double(), torch.zeros(V).double()
    for share, sample in samples_of("student", log_mu_V, log_p_V, k, places):
        targets = position(log_p_V, k, buckets, sample)
        leaf_TV = logits_V[None].clone().requires_grad_()
        value = policy_gradient(Sides(plain_view(leaf_TV, targets), targets), loss).sum()
        found = found + share * value.detach()
        found_V = found_V + share * torch.autograd.grad(value, leaf_TV)[0][0]
    leaf_V = logits_V.clone().requires_grad_()
    whole = over_ids(leaf_V.log_softmax(0), log_p_V, loss)
    (expected_V,) = torch.autograd.grad(whole, leaf_V)
    torch.testing.assert_close(found, whole.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"importance": "none", "policy": {"clip_low": 0.2}}, "importance = 'none' has none"),
        ({"policy": {"importance_floor": 0.9}, "importance_cap": 0.5}, "no weight is left"),
        ({"policy": {"kl_type": "k2", "discount": 1.0}}, "discount would change an advantage"),
        ({"estimator": "sampled", "policy": {"baseline": "before"}}, "policy.baseline is about"),
        ({"estimator": "sampled", "importance": "geometric"}, "importance is about the sampled"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig.model_validate({"kind": "policy_gradient", **keys})


def test_opd_is_another_name_of_it() -> None:
    assert LossConfig.model_validate({"kind": "opd"}) == LossConfig(kind="policy_gradient")
