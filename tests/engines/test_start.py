"""What an engine starts with: what it cannot change once it runs."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection, VllmSection
from tests.support.minimal import parse

SECTION = EngineSection(engine="vllm")
START = Start(ModelSource("a", None, False), SECTION, dtype="float32", use="sample", max_tokens=60)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"use": "score"},
        {"max_tokens": 61},
        {"reads_text": True},
        {"source": ModelSource("a", None, True)},
        {"section": SECTION.model_copy(update={"batch_tokens": 7})},
        {"section": SECTION.model_copy(update={"logit_chunk_mb": 7.0})},
        {"section": SECTION.model_copy(update={"vllm": VllmSection(enforce_eager=True)})},
    ],
    ids=str,
)
def test_another_start_needs_another_engine(changes: dict[str, Any]) -> None:
    assert replace(START, **changes).fixed != START.fixed


def test_other_weights_of_the_same_model_do_not() -> None:
    assert replace(START, source=ModelSource("b", None, False)).fixed == START.fixed


def test_stages_with_the_same_settings_of_the_engine_may_share_one() -> None:
    rollout, again = parse().rollout, parse("rollout.temperature=0.5").rollout
    assert rollout != again
    assert replace(START, section=rollout).fixed == replace(START, section=again).fixed
