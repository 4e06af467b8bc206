"""Which sequences are shown: prompts that come back, the worst of the newest round, some of each.

Pure.
"""

import polars as pl

from pipeline.report.tokens.looked import Looked
from pipeline.report.tokens.reading import Sample

COMING_BACK = 0.4
"""Part of the transcripts that is for prompts which several rounds sampled."""

WORST = 0.5
"""Part of the rest that is for the largest KL of the newest round."""


def chosen(sample: Sample, most: int) -> tuple[list[int], list[int]]:
    """Return the rows of both parts of a sample that are shown, `most` in all.

    Args:
        sample: what was read.
        most: transcripts of the page.
    """
    held_out = _coming_back(sample.held_out, max(int(most * COMING_BACK / 2), 1))
    left = most - len(held_out)
    rows = _coming_back(sample.trained, int(left * COMING_BACK))
    rows += _worst(sample.trained, int((left - len(rows)) * WORST), rows)
    rows += _spread(sample.trained, left - len(rows), rows)
    return sorted(rows), sorted(held_out)


def _coming_back(looked: Looked, most: int) -> list[int]:
    """Return rows of prompts that several rounds sampled, whole prompts at a time.

    Those whose grade changed come first, then those that the most rounds sampled.
    """
    first = looked.rows.sort("round", "sample_index").unique(["prompt_id", "round"], keep="first")
    counted = first.group_by("prompt_id").agg(
        pl.len().alias("rounds"), pl.col("row").sort(), pl.col("reward").n_unique().alias("grades")
    )
    order, falling = ("grades", "rounds", "prompt_id"), [True, True, False]
    several = counted.filter(pl.col("rounds") > 1).sort(order, descending=falling)
    found: list[int] = []
    for rows in several["row"]:
        if len(found) + len(rows) > most:
            break
        found += rows.to_list()
    return found


def _worst(looked: Looked, most: int, taken: list[int]) -> list[int]:
    """Return the rows of the newest round that was scored with the largest mean KL."""
    known = looked.tokens.filter(pl.col("own") & pl.col("kl").is_not_null())
    newest = known.filter(pl.col("round") == known["round"].max())
    means = newest.group_by("row").agg(pl.col("kl").mean()).filter(~pl.col("row").is_in(taken))
    return means.sort("kl", "row", descending=[True, False])["row"].head(max(most, 0)).to_list()


def _spread(looked: Looked, most: int, taken: list[int]) -> list[int]:
    """Return rows of all rounds in turn, the first ones of each."""
    left = looked.rows.filter(~pl.col("row").is_in(taken)).select("row", "round")
    turns = left.with_columns(turn=pl.col("row").rank("ordinal").over("round"))
    return turns.sort("turn", "round")["row"].head(max(most, 0)).to_list()
