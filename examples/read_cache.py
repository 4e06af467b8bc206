"""Where the KL of a round sits: stored scores read in polars, plotted in text.

Cells of a notebook; needs a run, such as the one that `make quickstart` leaves.
"""

# %% Open a run; this reads its TOML and nothing else.
import os

import polars as pl

import pipeline as opd

CONFIG = os.environ.get("OPD_CONFIG", "opd-quickstart/run.toml")
run = opd.open(CONFIG)

# %% A row for each token that the student sampled, with what both models thought of it.
sampled = run.rollouts(0).select("sequence_id", "text", student="rollout_student_logprobs")
scored = run.scores(0).select("sequence_id", teacher="token_logprob")
tokens = (
    sampled.join(scored, on="sequence_id")
    .with_columns(position=pl.int_ranges(pl.col("student").list.len()))
    .explode("student", "teacher", "position")
    .with_columns(kl=pl.col("student") - pl.col("teacher"))
    .collect()
)
print(f"{tokens.height:,} tokens, reverse KL {tokens['kl'].mean():.4f} nats per token")

# %% By position of the response.
by_position = tokens.group_by("position").agg(pl.col("kl").mean()).sort("position")
widest = max(*by_position["kl"], 1e-9)
for position, kl in by_position.iter_rows():
    print(f"{position:>5} {kl:8.4f}  {'█' * round(40 * max(kl, 0.0) / widest)}")

# %% The responses that are furthest from the teacher.
worst = tokens.group_by("sequence_id", "text").agg(pl.col("kl").sum()).sort("kl", descending=True)
print(worst.select("kl", "text").head(5))
