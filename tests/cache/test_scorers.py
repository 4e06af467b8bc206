"""Scorers of a root: what is one, and one that goes while it is looked at."""

from pathlib import Path

import pytest

from pipeline.cache.scorers import find_scorers, known_scorers, of_each_scorer
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError
from schemas.keys import commit_key, lease_key, scorer_folder, scorer_key

MADE, DAMAGED, BEGUN = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    """Return a root with a scorer, one that lost its description, and one that is being made."""
    storage = Storage(str(tmp_path / "root"))
    storage.put(scorer_key(MADE), b"{}")
    storage.put(commit_key(scorer_folder(DAMAGED), "u00000"), b"{}")
    storage.put(lease_key(scorer_folder(BEGUN), "hold-1"), b"{}")
    return storage


def test_a_folder_with_nothing_but_leases_is_no_scorer(root: Storage) -> None:
    assert known_scorers(root) == find_scorers(root, None) == [MADE, DAMAGED]
    with pytest.raises(ConfigError, match="0 scorers have a key that begins with '3'"):
        find_scorers(root, "3")


def test_a_scorer_that_goes_while_it_is_looked_at_is_left_out(root: Storage) -> None:
    def look(scorer: str) -> str:
        if scorer == MADE:
            root.delete(scorer_key(scorer))
            raise DataError("scorer.json is missing")
        return scorer

    assert of_each_scorer(root, None, look) == [DAMAGED]


def test_what_is_wrong_with_a_scorer_that_is_there_is_told(root: Storage) -> None:
    def look(scorer: str) -> str:
        raise DataError(f"{scorer} is damaged")

    with pytest.raises(DataError, match=f"{MADE} is damaged"):
        of_each_scorer(root, None, look)
