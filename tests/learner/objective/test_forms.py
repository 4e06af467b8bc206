"""The forms of an objective that stored rows allow."""

from typing import Any

import pytest

from pipeline.learner.objective.forms import By, forms_of
from pipeline.learner.sequences import untrained_batch
from schemas.config.loss import LossConfig

FORMS: list[tuple[dict[str, Any], tuple[By, ...], list[By]]] = [
    ({"kind": "reverse_kl"}, (), ["token", "bucket"]),
    ({"kind": "reverse_kl"}, ("student", "teacher"), ["student", "bucket", "token"]),
    ({"kind": "reverse_kl", "estimator": "bucket"}, ("student",), ["bucket", "token", "student"]),
    ({"kind": "forward_kl"}, ("student",), ["bucket"]),
    ({"kind": "forward_kl"}, ("teacher",), ["teacher", "bucket"]),
    ({"kind": "skew_kl"}, ("student", "teacher"), ["teacher", "bucket", "token", "student"]),
    ({"kind": "alpha"}, ("student",), ["student", "bucket", "token"]),
    ({"kind": "alpha", "alpha": 0.7}, ("student", "teacher"), ["teacher", "bucket"]),
    ({"kind": "policy_gradient"}, ("student",), ["student", "bucket", "token"]),
    ({"kind": "policy_gradient", "policy": {"discount": 0.5}}, ("student",), ["bucket"]),
    ({"kind": "sft"}, (), ["bucket"]),
    ({"kind": "reverse_kl", "temperature": 2.0}, ("student",), ["bucket"]),
]


def batches(*of: By) -> dict[By, Any]:
    return dict.fromkeys(("bucket", *of), untrained_batch())


@pytest.mark.parametrize(("keys", "stored", "expected"), FORMS)
def test_the_configured_form_comes_first_and_others_by_what_is_stored(
    keys: dict[str, Any], stored: tuple[By, ...], expected: list[By]
) -> None:
    loss = LossConfig.model_validate(keys)
    found = forms_of(loss, batches(*stored), truncated=False)
    assert [form.by for form in found if form.loss.kind == loss.kind] == expected
    assert [form.configured for form in found] == [True] + [False] * (len(found) - 1)
    assert len({form.name for form in found}) == len(found)


def test_a_truncated_rollout_says_nothing_of_what_it_cut_away() -> None:
    loss = LossConfig(kind="reverse_kl", estimator="bucket")
    found = forms_of(loss, batches("student", "teacher"), truncated=True)
    assert {form.by for form in found} == {"bucket", "teacher"}
    assert "policy_gradient" not in {form.loss.kind for form in found}


def test_the_setting_of_a_form_trains_it() -> None:
    loss = LossConfig(kind="jsd", beta=0.3)
    for form in forms_of(loss, batches("student"), truncated=False):
        assert f"loss.estimator = '{form.loss.estimator}'" in form.setting
    kept = [form for form in forms_of(loss, batches(), truncated=False) if form.loss.kind == "jsd"]
    assert {form.loss.beta for form in kept} == {0.3}
