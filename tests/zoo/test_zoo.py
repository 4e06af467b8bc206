"""Models of every kind: each is right to 1e-3 nats at every position, or refused with a reason."""

import re
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.support.zoo import WORKS, Entry, entries
from tests.support.zoomodels import make_entry
from tests.support.zooway import LIMIT, Teacher, whole_way


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return Teacher(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_a_model_is_right_at_every_step_or_refused(
    entry: Entry, teacher: Teacher, tmp_path: Path
) -> None:
    folder = make_entry(tmp_path / "model", entry)
    if entry.hf == WORKS:
        gaps = whole_way(folder, teacher)
        assert {step: nats for step, nats in gaps.items() if not nats < LIMIT} == {}
        return
    with pytest.raises(ConfigError, match=re.escape(entry.hf)) as caught:
        whole_way(folder, teacher)
    assert caught.value.exit_code == 2
