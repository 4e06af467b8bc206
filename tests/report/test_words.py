"""What the page says in words and tables, made anew here from the stored manifests."""

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import page
from pipeline.report.written import in_bytes, in_time, written
from tests.support.reports import grown, view_of

MEGABYTE = 1_000_000


class Tables(HTMLParser):
    """The tables of a page: rows of the texts of their cells."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a table, a row or a cell."""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._open = tag in ("td", "th") or (self._open and tag == "span")

    def handle_endtag(self, tag: str) -> None:
        """End a cell."""
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        """Add to a cell."""
        if self._open:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def text(finished_run: Path) -> str:
    return page([view_of(finished_run)], written_at="today")


def manifests(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return a stage's manifests of both rounds."""
    rounds = folder / "store" / "runs" / "tiny" / "rounds"
    return [json.loads((rounds / f"000{n}" / stage / "manifest.json").read_text()) for n in (0, 1)]


def interval(graded: dict[str, Any]) -> str:
    """Return an accuracy with Wilson's interval, from the formula as textbooks have it."""
    p, n, z = graded["accuracy"], graded["rows"], 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{p:.1%} ({max(middle - half, 0):.1%} to {middle + half:.1%})"


def test_the_head_says_what_the_manifests_say(text: str, finished_run: Path) -> None:
    graded, scored = manifests(finished_run, "eval"), manifests(finished_run, "score/main")
    baseline = finished_run / "store/runs/tiny/baseline"
    start = json.loads((baseline / "student/manifest.json").read_text())
    teacher = json.loads((baseline / "teacher/main/manifest.json").read_text())
    rows = sum(one["rows"] for one in scored)
    reused = sum(one["reused_rows"] for one in scored)
    size = sum(unit["shard"]["bytes"] for one in scored for unit in one["units"])
    paid = sum(one["teacher_tokens"] for one in scored)
    shown = unescape(re.sub(r"<[^>]+>", "\n", text))
    for line in (
        "student learns from main (main), on 24 prompts of prompts.jsonl, with the loss "
        "forward_kl.",
        "2 of 2 rounds are trained.",
        f"Accuracy after round 1 is {interval(graded[1])}, from {interval(start)} at the start.",
        f"Teacher main has {interval(teacher)}",
        f"Reverse KL went from {scored[0]['reverse_kl']:.4f} nats per token in round 0 to "
        f"{scored[1]['reverse_kl']:.4f} in round 1.",
        f"The teacher read {paid:,} tokens; of {rows} sequences, {reused} ({reused / rows:.1%}) "
        "were in the cache already.",
        f"Scores take {in_bytes(size)}, of which ",
    ):
        assert line in shown


def test_the_table_of_rounds_has_every_value_of_its_figures(text: str, finished_run: Path) -> None:
    tables = Tables()
    tables.feed(text)
    (found,) = [t for t in tables.tables if t[0][:2] == ["round", "Accuracy"]]
    trained, scored = manifests(finished_run, "train"), manifests(finished_run, "score/main")
    for index, row in enumerate(found[1:]):
        cells = dict(zip(found[0], row, strict=True))
        summary = trained[index]["summary"]
        assert cells["round"] == str(index)
        assert cells["Forward KL"] == written(summary["forward_kl"], "nats")
        assert cells["Entropy: student"] == written(summary["student_entropy"], "nats")
        assert cells["Mass on the support: teacher"] == written(summary["teacher_mass"], "share")
        assert cells["Rollout KL"] == f"{trained[index]['rollout_kl']:.3g}"
        assert cells["Teacher tokens"] == f"{scored[index]['teacher_tokens']:,}"
        assert "not stored" not in row


def test_the_table_of_stages_shares_out_the_time(text: str, finished_run: Path) -> None:
    tables = Tables()
    tables.feed(text)
    (found,) = [t for t in tables.tables if t[0][0] == "stage"]
    assert [row[0] for row in found[1:]] == ["rollout", "score", "train", "eval"]
    shares = [float(row[3].removesuffix("%")) for row in found[1:]]
    assert sum(shares) == pytest.approx(100.0, abs=0.3)


def test_a_hundred_rounds_of_long_responses_stay_below_10_megabytes(finished_run: Path) -> None:
    view = grown(view_of(finished_run), rounds=100, tokens=500)
    assert len(view.figures.rounds) == 100 and len(view.figures.steps) == 6000
    assert min(len(row["ids"]) for row in view.transcripts.rows[20:]) >= 500
    assert view.transcripts.left_out > 0
    size = len(page([view], written_at="today").encode())
    assert 5 * MEGABYTE < size < 10 * MEGABYTE


def test_numbers_are_written_as_people_read_them() -> None:
    assert [written(None, "share"), written(math.nan, "nats")] == ["not stored", "no number"]
    assert [in_time(s) for s in (0.5, 59.9, 61, 3599, 7260, 200_000)] == [
        *("0.5 s", "59.9 s", "1 min", "1 h 0 min", "2 h 1 min", "2 d 7 h"),
    ]
    assert [in_bytes(n) for n in (0, 999, 1500, 2.5e12)] == ["0 B", "999 B", "1.5 kB", "2.5 TB"]
    assert [written(v, "number") for v in (0.0, 1234.5, 1.5e-5, 12.3456)] == [
        *("0", "1,234", "1.5e-05", "12.35"),
    ]
