"""A few models of the zoo on vLLM, which takes seconds to start; `make zoo` has the others."""

import re
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.support.zoo import WORKS, Entry, entries
from tests.support.zoomodels import make_entry
from tests.support.zooway import LIMIT, engine_gaps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("beside_flask")]

CHOSEN = ("Granite", "Granite-MoE hybrid", "Gemma 2")


@pytest.mark.parametrize("entry", [e for e in entries() if e.name in CHOSEN], ids=lambda e: e.name)
def test_a_model_is_right_on_vllm_or_refused(entry: Entry, tmp_path: Path) -> None:
    folder = make_entry(tmp_path / "model", entry)
    if entry.vllm == WORKS:
        gaps, _ = engine_gaps(folder, "vllm")
        assert {step: nats for step, nats in gaps.items() if not nats < LIMIT} == {}
        return
    with pytest.raises(ConfigError, match=re.escape(entry.vllm)) as caught:
        engine_gaps(folder, "vllm")
    assert caught.value.exit_code == 2
