"""Reports for tests: a finished run as its page has it, with text that would do harm as markup."""

from dataclasses import replace
from pathlib import Path

from pipeline.report.figures import gather
from pipeline.report.page import View
from pipeline.report.transcripts.packing import pack
from pipeline.report.transcripts.pieces import student_pieces
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run

HARM = (
    "</script><script>window.harm=1</script><img src=x onerror=window.harm=2>"
    "<!--&\x1b[31m\u202e\x00\ud800'\""
)
"""Text that runs, closes, colours, turns or hides something wherever it is not kept text."""


def view_of(folder: Path, *, rows: int = 16) -> View:
    """Return what the page has of the run in a folder."""
    run = open_run(load_config(folder / "run.toml"))
    figures = gather(run, run.name, rows=rows)
    pieces, untold = student_pieces(run)
    return View(figures, pieces, untold, pack(figures.sample, pieces, most_rows=rows))


def harmful(view: View) -> View:
    """Return a view whose run's name, tokens, prompts and notes are `HARM`."""
    told = view.transcripts
    rows = [{**row, "prompt": HARM, "reference": HARM} for row in told.rows]
    for row in rows:
        row["text"] = [HARM, *row["text"][1:]]
    tops = dict.fromkeys(told.tops, HARM)
    sample = replace(view.figures.sample, notes=(HARM,))
    return replace(
        view,
        figures=replace(view.figures, name=f"tiny {HARM}", sample=sample),
        untold=HARM,
        transcripts=replace(told, rows=rows, tops=tops),
    )
