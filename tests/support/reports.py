"""Reports for tests: a finished run as its page has it, with text that would do harm as markup."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.report.figures import gather
from pipeline.report.page import View
from pipeline.report.tokens.looked import Looked, Tops
from pipeline.report.transcripts.packing import pack
from pipeline.report.transcripts.pieces import student_pieces
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from schemas.ragged import token_index

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


def grown(view: View, *, rounds: int, tokens: int) -> View:
    """Return a view as if its run had more rounds, and its sequences as many tokens.

    Numbers repeat; 60 optimizer steps are those of a round.
    """
    figures = view.figures
    many = pl.concat([figures.rounds] * rounds).head(rounds)
    many = many.with_columns(round=pl.Series(range(rounds)))
    steps = pl.concat([figures.steps] * (60 * rounds)).head(60 * rounds)
    steps = steps.with_columns(step=pl.Series(range(60 * rounds)))
    looked = figures.sample.trained
    times = -(-tokens // int(looked.rows["length"].min() or 1))  # type: ignore[arg-type]
    part = looked_again(looked, times)
    sample = replace(figures.sample, trained=Looked.joined([part] * (rounds // 4)))
    return View(
        replace(figures, rounds=many, steps=steps, sample=sample),
        view.pieces,
        None,
        pack(sample, view.pieces, most_rows=200),
    )


def looked_again(looked: Looked, times: int) -> Looked:
    """Return sequences with each response as often one after the other."""
    lengths = looked.rows["length"].to_numpy()
    place = token_index(lengths, np.repeat(np.arange(len(lengths)), times))
    tops = looked.tops
    return Looked(
        looked.rows.with_columns(
            pl.col("length") * times, response_ids=pl.concat_list([pl.col("response_ids")] * times)
        ),
        looked.tokens[place],
        Tops(
            tops.teacher_ids[place],
            tops.teacher_logprobs[place],
            tops.student_ids[place],
            tops.student_logprobs[place],
        ),
    )


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
