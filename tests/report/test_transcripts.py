"""Transcripts: which are shown, text in pieces, and numbers that are those of the shards."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import gather
from pipeline.report.tokens.reading import Sample
from pipeline.report.transcripts.choice import chosen
from pipeline.report.transcripts.packing import pack
from pipeline.report.transcripts.pieces import HALF, IDS, LONGEST, Pieces, student_pieces
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from tests.support.tiny import chat_tokenizer

BYTES = Pieces(lambda ids: bytes(ids).decode(errors="replace"), lambda token: f"<{token:02x}>")
"""Each id is a byte."""


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return open_run(load_config(finished_run / "run.toml"))


@pytest.fixture(scope="module")
def sample(run: Run) -> Sample:
    return gather(run, "x", rows=100).sample


@given(st.text(max_size=40))
def test_the_bytes_of_a_character_are_one_piece(text: str) -> None:
    pieces = BYTES.split(list(text.encode()))
    shown = [one.text for one in pieces]
    assert "".join(shown) == text
    if HALF not in text:
        assert shown == list(text)
        assert [one.tokens for one in pieces] == [len(c.encode()) for c in text]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_lose_no_token(data: bytes) -> None:
    pieces = BYTES.split(list(data))
    assert sum(one.tokens for one in pieces) == len(data)
    assert all(1 <= one.tokens <= LONGEST and one.text for one in pieces)


def test_a_broken_character_keeps_to_itself() -> None:
    assert [one.text for one in BYTES.split(list(b"\xe2\x82a"))] == [HALF, "a"]
    assert BYTES.one(0xE2) == "<e2>" and BYTES.one(0x61) == "a"


@given(st.text(alphabet="aé€😀 \n\u202e\x00", max_size=12))
def test_a_real_tokenizers_pieces_are_its_text(text: str) -> None:
    tokenizer: Any = chat_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = Pieces(lambda some: str(tokenizer.decode(some)), lambda one: None).split(ids)
    assert "".join(one.text for one in pieces) == text
    assert sum(one.tokens for one in pieces) == len(ids)


def test_the_numbers_of_a_token_are_those_that_are_stored(run: Run, sample: Sample) -> None:
    packed = pack(sample, student_pieces(run)[0], most_rows=1000)
    scored = [row for row in packed.rows if row["kind"] == "trained on"]
    assert len(scored) == len(sample.trained.rows) == 32
    tokens = iter(sample.trained.tokens.to_dicts())
    place = 0
    for row in scored:
        mine = [next(tokens) for _ in row["ids"]]
        assert row["ids"] == [t["id"] for t in mine]
        assert row["student"] == [round(1000 * t["student"]) for t in mine]
        assert row["scored"] == [round(1000 * t["teacher"]) for t in mine]
        assert row["rank"] == [t["rank"] for t in mine]
        assert row["kl"] == pytest.approx(sum(t["kl"] for t in mine) / len(mine))
        assert row["worst"] == max(t["kl"] for t in mine)
        tops = sample.trained.tops.teacher_ids[place : place + len(mine)]
        assert row["teacher_ids"] == tops.reshape(-1).tolist()
        place += len(mine)
    assert json.dumps(packed.rows, allow_nan=False)


def test_prompts_that_come_back_are_shown_with_all_their_rounds(sample: Sample) -> None:
    rows, held_out = chosen(sample, 20)
    assert len(rows) + len(held_out) <= 20
    shown = sample.trained.rows[rows]
    counts = shown.group_by("prompt_id").len()["len"].to_list()
    assert max(counts) == 2
    graded = sample.held_out.rows[held_out]
    assert set(graded.group_by("prompt_id").len()["len"]) == {2}


def test_the_worst_of_the_newest_round_are_among_the_shown(sample: Sample) -> None:
    rows, _ = chosen(sample, 16)
    newest = sample.trained.tokens.filter(own=True, round=1)
    means = {row: newest.filter(row=row)["kl"].to_numpy().mean() for row in set(newest["row"])}
    assert max(means, key=means.__getitem__) in rows


def test_what_does_not_fit_is_counted(sample: Sample) -> None:
    packed = pack(sample, IDS, most_rows=30, most_bytes=3000)
    assert len(packed.rows) + packed.left_out == 30
    assert packed.left_out > 20
    assert packed.bytes < 6000


def test_ids_are_shown_where_no_tokenizer_can_be_read(run_copy: Path) -> None:
    (run_copy / "store/runs/tiny/checkpoints/0000/tokenizer.json").unlink()
    run = open_run(load_config(run_copy / "run.toml"))
    pieces, why = student_pieces(run)
    assert why is not None and "tokenizer.json" in why
    assert [one.text for one in pieces.split([5, 17])] == ["⟨5⟩", "⟨17⟩"]
