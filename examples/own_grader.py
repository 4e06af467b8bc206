"""Training with a grader of one's own: the student is taught where its answer was wrong.

Cells of a notebook; needs what `make quickstart` leaves. `rewards.py` stands beside the TOML, for
a grader is the bytes of a file: graders run in processes of their own, and a run that is half done
never goes on with another one.
"""

# %% The grader is a function of a file beside the TOML; it may be tried before it is used.
import os
import sys
from pathlib import Path

import pipeline as opd

CONFIG = os.environ.get("OPD_CONFIG", "examples/cpu.toml")
sys.path.insert(0, str(Path(CONFIG).resolve().parent))
from rewards import final_number  # noqa: E402  # it lies beside the TOML

print(final_number("1+2=3", "3", {}), final_number("1+2=4", "3", {}))

# %% Open the run with it, under a name of its own.
run = opd.open(
    CONFIG,
    overrides={
        "run.name": "own-grader",
        "reward.grader": final_number,
        "loss.gate": {"student": "wrong"},
    },
)

# %% One round, stage by stage.
run.rollout(0)
graded = run.grade(0)
run.score(0)
trained = run.train(0)
print(graded.figures)
print(trained.figures)

# %% What it said of the first responses.
[first] = run.status(0).rounds
print(f"mean reward {first.reward:.3f}")
print(run.rollouts(0).select("prompt_id", "reference", "text").head(5).collect())
