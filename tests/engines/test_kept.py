"""What the stages of a process keep for each other."""

import pytest

from pipeline.engines.kept import done, keeping, lent, once, put, take


class Model:
    """Something that can be closed."""

    closed = False

    def close(self) -> None:
        """Give the memory back."""
        assert not self.closed
        self.closed = True


def test_a_thing_is_made_once_and_closed_with_the_block() -> None:
    made = list[Model]()

    def make() -> Model:
        made.append(Model())
        return made[-1]

    with keeping(True):
        for _ in range(3):
            with lent(make, place="teacher", key=("k", 1)) as model:
                assert not model.closed
        with lent(make, place="teacher", key=("k", 2)) as other:
            assert other is not made[0] and made[0].closed
        assert not made[1].closed
    assert [model.closed for model in made] == [True, True]


def test_what_failed_is_closed_and_not_given_again() -> None:
    with keeping(True):
        with pytest.raises(ValueError), lent(Model, place="teacher", key=1) as broken:
            raise ValueError
        assert broken.closed
        assert take("teacher", 1) is None


def test_nothing_is_kept_outside_of_a_block_or_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = Model()
    put("teacher", 1, alone)
    assert alone.closed and take("teacher", 1) is None
    done("proof")
    assert once("proof")
    monkeypatch.setattr("pipeline.engines.kept.SHARE", 1.1)
    with keeping(True):
        done("proof")
        assert not once("proof")
        large = Model()
        put("teacher", 1, large)
        assert large.closed and take("teacher", 1) is None
