"""The best choice in words."""

from dataclasses import replace

from pipeline.learner.objective.checked import Checked, FormFigures, advice
from pipeline.learner.objective.forms import By, Form
from pipeline.objectives.check.moments import Worth
from schemas.config.loss import LossConfig


def figures(by: By, cosine: float | None, *, bias: float = 0.0, kind: str = "jsd") -> FormFigures:
    form = Form(LossConfig(kind=kind, estimator="auto" if by == "token" else "bucket"), by)
    reference = None if kind == "forward_kl" else "jsd: top-k and the sampled token"
    return FormFigures(form, reference, Worth(bias, 0.1, 9.0, 1.0, 2.0), cosine, 0.0, None)


def told(*forms: FormFigures) -> str:
    return advice(Checked(round=0, rows=9, positions=1024, step_tokens=1500, forms=forms))


def test_another_form_is_named_with_its_setting_and_its_bias() -> None:
    words = told(figures("token", 0.7), figures("bucket", 0.9, bias=0.25))
    assert "jsd: top-k and bucket is better" in words
    assert "in a step of 1,500 tokens is 0.900" in words and "configured form 0.700" in words
    assert "a bias of 25%, which no number of tokens mends" in words
    assert "loss.estimator = 'bucket'" in words and "another run.name" in words


def test_the_configured_form_is_kept_unless_another_is_clearly_better() -> None:
    assert told(figures("token", 0.9), figures("bucket", 0.91)).startswith(
        "keep jsd: top-k and the"
    )
    other = figures("bucket", 0.99, kind="forward_kl")
    assert told(figures("token", 0.7), other).startswith("keep jsd: ")  # it minimises another thing


def test_what_the_rows_do_not_tell_is_said() -> None:
    assert "score.sample = 16 would" in told(figures("bucket", 0.9, kind="forward_kl"))
    assert "1,024 positions do not tell the mean" in told(figures("bucket", None))


def test_what_was_measured_of_all_ids_decides_where_it_is_known() -> None:
    mine, other = figures("token", 0.9), figures("bucket", 0.5)
    words = told(replace(mine, of_all_ids=0.90), replace(other, of_all_ids=0.91))
    assert "jsd: top-k and bucket is better" in words
    assert "with the gradient over all ids is 0.910" in words
    assert told(replace(mine, of_all_ids=0.90), replace(other, of_all_ids=0.902)).startswith("keep")
