"""The note of what W&B was told: whatever is lost, each point arrives once, at steps that rise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.trackers.wandbnote import Note, read_note, write_note
from schemas.errors import DataError

PARTS = {"0000": range(5), "0001": range(7, 12), "0000-eval": range(5, 6), "0001-eval": [12]}
"""Part → orders of its points; the first evaluation comes after the second round."""

DONE = 99


@given(st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=5))
def test_every_point_arrives_once_whatever_a_killed_process_lost(
    kills: list[tuple[int, int]],
) -> None:
    rows = list[tuple[int, str, int]]()  # step, part, order: what W&B has
    note = Note()
    for number, (told, lost) in enumerate([*kills, (DONE, 0)]):
        began = len(rows)
        note = note.gone_on(rows[-1][0] + 1 if rows else 0, [f"folder-{number}"])
        mine = set[str]()
        for name, orders in PARTS.items():
            if name in note.sent or len(rows) - began >= told:
                continue
            note, places = note.with_part(name, list(orders))
            mine.add(name)
            rows += [(step, name, order) for order, step in places.items()]
        if told != DONE:
            del rows[max(began, min(began + told, len(rows)) - lost) :]
        else:
            note = note.finished(frozenset(mine), f"folder-{number}")
    arrived = sorted((name, order) for _, name, order in rows)
    assert arrived == sorted((name, order) for name, orders in PARTS.items() for order in orders)
    steps = [step for step, _, _ in rows]
    assert steps == sorted(set(steps))
    assert note.sent == set(PARTS) and not note.begun


def test_points_that_others_sent_are_taken_to_be_at_the_steps_of_their_orders() -> None:
    note = Note().gone_on(9, [])
    assert note.with_part("0000", range(5))[1] == {}
    assert note.with_part("0001", range(7, 12))[1] == {9: 9, 10: 10, 11: 11}


def test_a_note_is_read_as_it_was_written_and_as_older_ones_were(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    assert read_note(path) == Note()
    note, _ = Note().gone_on(3, ["a"]).with_part("0000", range(5))
    write_note(path, note)
    assert read_note(path).begun == note.begun and read_note(path).folders == {"a"}
    path.write_text('["0000", "0001"]')
    assert read_note(path) == Note(sent=frozenset({"0000", "0001"}))
    path.write_text('{"sent": 3}')
    with pytest.raises(DataError, match=r"note.json is no note .* delete it"):
        read_note(path)
