"""Where the KL sits: by round, by position, by token, by family of prompts. Pure.

All figures are means over tokens that the student sampled itself; each frame has the columns
`place`, `tokens`, `kl` and `share`, the part of the whole KL that lies there.
"""

import json
from typing import Any

import numpy as np
import polars as pl

from pipeline.report.tokens.looked import Looked
from schemas.foreign import printable

WORST = 10
"""Places that are shown, the worst ones."""

LEAST_TOKENS = 3
"""Tokens that a place must have for its mean to be ranked."""

ALONE = 16
"""First positions, each of which is a place of its own; later ones are joined."""

GROWTH = 1.3
"""How much longer each further stretch of positions is."""

LONGEST_FAMILY = 60
"""Characters of a family's name."""

MOST_FAMILIES = 40
"""Different values that a column may have to divide prompts into families."""


def by_round(looked: Looked) -> pl.DataFrame:
    """Return a row for each round that was looked at, with what only its sequences tell."""
    own = looked.tokens.filter("own")
    tokens = own.group_by("round").agg(
        pl.col("entropy").mean().alias("teacher_entropy"),
        pl.col("mass").mean().alias("topk_mass"),
        pl.col("in_topk").mean().alias("sampled_in_topk"),
        (pl.col("rank") == 1).mean().alias("sampled_first"),
        pl.col("overlap").mean(),
        pl.col("kl").mean().alias("looked_kl"),
    )
    rows = looked.rows.group_by("round").agg(
        (pl.col("finish_reason") == "length").mean().alias("cut_off"),
        pl.col("length").cast(pl.Float64).median().alias("length_median"),
        pl.col("length").quantile(0.9, "lower").cast(pl.Float64).alias("length_90"),
        pl.len().alias("looked_rows"),
    )
    return rows.join(tokens, on="round", how="left").sort("round")


def by_position(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the mean KL of each position, or stretch of positions, with its first one as place."""
    own = _known(tokens)
    if own.is_empty():
        return _summed(own.with_columns(place=pl.col("position")))
    last = int(own["position"].max())  # type: ignore[arg-type] # integers
    edges = position_edges(last)
    bucket = np.searchsorted(edges, own["position"].to_numpy(), side="right") - 1
    return _summed(own.with_columns(place=pl.Series(edges[bucket]))).sort("place")


def position_edges(last: int) -> Any:
    """Return the first position of each stretch, int64, up to the one that holds `last`."""
    edges = list(range(min(ALONE, last + 1)))
    width = 1.0
    while edges[-1] + int(width) <= last and len(edges) >= ALONE:
        width *= GROWTH
        edges.append(edges[-1] + int(width))
    return np.array([edge for edge in edges if edge <= last], dtype=np.int64)


def by_token(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the sampled ids at which most of the KL lies, the worst first."""
    return _worst(_summed(_known(tokens).with_columns(place=pl.col("id"))), by="share")


def by_family(looked: Looked, column: str, tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the families of prompts with the largest KL, by a free column of the prompt file."""
    values = {
        row: _family(text, column)
        for row, text in zip(looked.rows["row"], looked.rows["metadata"], strict=True)
    }
    places = pl.Series([values[row] for row in tokens["row"]], dtype=pl.String)
    return _worst(_summed(_known(tokens.with_columns(place=places)).drop_nulls("place")))


def family_column(looked: Looked) -> str | None:
    """Return the free column that divides prompts into the most families that can be told apart."""
    fitting = {n: len(c) for n, c in free_columns(looked).items() if 2 <= len(c) <= MOST_FAMILIES}
    return min(fitting, key=lambda name: (-fitting[name], name)) if fitting else None


def free_columns(looked: Looked) -> dict[str, set[str]]:
    """Return the free columns of the prompts that were read, each with its different values."""
    found: dict[str, set[str]] = {}
    for text in looked.rows["metadata"].drop_nulls().unique():
        for name, value in _object(text).items():
            if isinstance(value, (str, int, bool)):
                found.setdefault(name, set()).add(str(value))
    return found


def _family(text: str | None, column: str) -> str | None:
    value = None if text is None else _object(text).get(column)
    if value is None:
        return None
    return printable(value if isinstance(value, str) else json.dumps(value))[:LONGEST_FAMILY]


def _object(text: str) -> dict[str, Any]:
    """Return stored metadata; what is no object of JSON has no columns."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _known(tokens: pl.DataFrame) -> pl.DataFrame:
    return tokens.filter(pl.col("own") & pl.col("kl").is_not_null())


def _summed(tokens: pl.DataFrame) -> pl.DataFrame:
    whole = float(tokens["kl"].sum())
    found = tokens.group_by("place").agg(
        pl.len().alias("tokens"), pl.col("kl").mean(), pl.col("kl").sum().alias("sum")
    )
    share = (pl.col("sum") / whole) if whole > 0 else pl.lit(None, pl.Float64)
    return found.with_columns(share=share).drop("sum")


def worst_positions(places: pl.DataFrame) -> pl.DataFrame:
    """Return the positions, of those that `by_position` gives, with the largest mean KL."""
    return _worst(places)


def _worst(places: pl.DataFrame, by: str = "kl") -> pl.DataFrame:
    ranked = places.filter(pl.col("tokens") >= LEAST_TOKENS)
    ranked = ranked if len(ranked) else places
    return ranked.sort(by, "kl", "place", descending=[True, True, False]).head(WORST)
