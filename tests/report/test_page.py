"""The page: what it says, what it refuses, and that nothing on it is more than text."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.report.drawing.charts import specification
from pipeline.report.drawing.plots import plotted
from pipeline.report.figures import gather
from pipeline.report.markup import data_script, joined, plain, raw, tag
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.store.storage import Storage
from tests.support.runs import Cli

BAD = "</script><img src=x onerror=alert(1)>&\x1b[31m\u202e\x00\ud800'\""


def test_a_report_tells_what_was_taught_and_shows_each_figure(
    finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "page.html"
    result = cli.ok("report", "-c", finished_run / "run.toml", "--out", out)
    text = out.read_text()
    assert (result["path"], result["rounds"], result["bytes"]) == (str(out), 2, len(text.encode()))
    for title in ("What was taught", "How far it came", "What it cost", "What looks wrong"):
        assert f"<h3>{title}</h3>" in text
    assert "2 of 2 rounds are trained" in text
    assert text.count("<svg") == text.count('class="chart"') > 20
    assert "<h3>Log-probability of the sampled tokens</h3>" in text
    assert "<h3>Stopped by a limit</h3>" not in text, "no limit stopped anything"
    absent = re.search(r'id="absent">([^<]*)', text)
    assert absent is not None and "Reward" in absent[1]


def test_a_figure_of_steps_that_no_catalogue_names_is_drawn_by_its_own_name(
    finished_run: Path,
) -> None:
    figures = gather(open_run(load_config(finished_run / "run.toml")), "x", rows=4)
    steps = figures.steps.with_columns(novel=pl.col("loss") + 1, gate_shut=pl.lit(0.5))
    groups = plotted([dataclasses.replace(figures, steps=steps)])
    titles = [chart.title for one in groups for _, chart in one.charts]
    assert "novel" in titles and "Stopped by a limit" in titles


def test_several_runs_are_compared_in_one_chart_a_figure(
    finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    config, out = finished_run / "run.toml", tmp_path / "page.html"
    cli.ok("report", "-c", config, "-c", config, "--out", out, "--rows", "4")
    text = out.read_text()
    assert "<h2>Differences</h2>" in text
    assert "tiny (1), round 1, student" in text and "tiny (2), round 1, student" in text
    assert text.count("<h3>Reverse KL</h3>") == 1
    figures = gather(open_run(load_config(config)), "one", rows=4)
    both = plotted([figures, dataclasses.replace(figures, name="two")])
    charts = {chart.title: chart for one in both for _, chart in one.charts}
    points = specification(charts["Entropy"])["layer"][1]["encoding"]
    shapes = points["shape"]["scale"]
    assert shapes["domain"] == ["student", "teacher"] and len(set(shapes["range"])) == 2
    assert points["color"]["field"] == "run"


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(run_copy: Path, cli: Cli) -> None:
    rounds = run_copy / "store" / "runs" / "tiny" / "rounds"
    for stage in ("eval", "train", "score/main/manifest.json"):
        path = rounds / "0001" / stage
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = run_copy / "page.html"
    cli.ok("report", "-c", run_copy / "run.toml", "--out", out)
    text = out.read_text()
    assert "1 of 2 rounds are trained, 2 have begun." in text
    assert "Round 1: 4 units of score are done, the stage is not." in text


def test_the_figures_are_the_same_from_s3(finished_run: Path, moto_storage: Storage) -> None:
    local, left_out = finished_run / "store", ("/state/", "/index/", ".safetensors", "/leases/")
    for path in sorted(p for p in local.rglob("*") if p.is_file()):
        key = str(path.relative_to(local))
        if not any(part in key for part in left_out):
            moto_storage.put(key, path.read_bytes())
    run = open_run(load_config(finished_run / "run.toml"))
    here, there = (
        gather(one, "x", rows=8) for one in (run, dataclasses.replace(run, storage=moto_storage))
    )
    assert here.rounds.equals(there.rounds) and here.steps.equals(there.steps)
    assert here.sample.trained.tokens.equals(there.sample.trained.tokens)
    assert here.sample.held_out.rows.equals(there.sample.held_out.rows)
    assert there.sample.notes == ()


def test_without_the_library_the_command_says_what_to_install(
    finished_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    outcome = cli("report", "-c", finished_run / "run.toml", "--out", tmp_path / "page.html")
    assert outcome.code == 2
    assert "pip install 'opd[report]'" in outcome.stderr
    assert not (tmp_path / "page.html").exists()


# --- text stays text ---


def test_no_text_becomes_markup_or_moves_others() -> None:
    shown = str(tag("p", BAD, title=BAD))
    assert shown.count("<") == 2 and shown.startswith("<p title=") and shown.endswith("</p>")
    assert not set(plain(BAD)) & set("\x1b\u202e\x00\ud800")
    assert r"\x1b[31m\u202e\x00\ud800" in plain(BAD)
    assert shown.encode()  # half a character is no UTF-8


def test_data_closes_no_element_and_comes_back_plain() -> None:
    shown = str(data_script("d", {BAD: [BAD, 1, None, {"x": BAD}]}))
    inner = shown.removeprefix('<script type="application/json" id="d">').removesuffix("</script>")
    assert not set(inner) & set("<>&\x1b\u202e\x00")
    assert json.loads(inner) == {plain(BAD): [plain(BAD), 1, None, {"x": plain(BAD)}]}


def test_markup_of_ours_is_left_as_it_is() -> None:
    assert joined("a<b", raw("<br>"), None) == "a&lt;b<br>"
    assert (
        tag("input", type="checkbox", checked=True, disabled=False)
        == '<input type="checkbox" checked>'
    )
