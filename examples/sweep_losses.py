"""Two losses tried on one cache: the teacher's scores are reused, and no teacher is loaded.

Cells of a notebook; needs a run whose round 0 is scored and whose TOML names `score.k`, as that of
`make quickstart` does: left out, each loss keeps what suits it, and the teacher is asked again.
"""

# %% Each loss is a run of its own in the same root, with the same seed and so the same samples.
import os

import polars as pl

import pipeline as opd

CONFIG = os.environ.get("OPD_CONFIG", "opd-quickstart/run.toml")
LOSSES = ("jsd", "reverse_kl")

# %% One round of each.
found = []
for kind in LOSSES:
    run = opd.open(CONFIG, overrides={"run.name": f"sweep-{kind}", "loss.kind": kind})
    run.rollout(0)
    read = sum(result.teacher_tokens for result in run.score(0))  # 0: they are in the cache
    run.train(0)
    run.eval(0)
    [first] = run.status(0).rounds
    found.append({"loss": kind, "accuracy": first.accuracy, "teacher tokens": read})

# %% What it gave and what it cost.
table = pl.DataFrame(found)
print(table)
