"""Names of the objects of a root, from top to bottom as docs/storage.md draws them. Pure.

A key names an object, a folder is how keys begin: both without the root, with `/` between parts.
Must not: be spelled anywhere else, or change, for what is stored under another name is lost.
"""

import re
from typing import Literal

TIMED = re.compile(r"([a-z]+)-([0-9]{1,15})ms-[0-9a-f]+\.parquet$", re.ASCII)

RUNS, PROMPTS, ROLLOUTS, CACHE = "runs", "prompts", "rollouts", "cache"
REWARDS = "rewards"
PINS, PROBES, SWEEPS = "pins", "probe", "gc"

# --- in each folder whose work is cut into units: stages, evaluations, caches ---

LEASES = "leases"


def commits_folder(folder: str) -> str:
    """Return the folder of the units' commits."""
    return f"{folder}/commits"


def commit_key(folder: str, unit: str) -> str:
    """Return the key of a unit's commit."""
    return f"{commits_folder(folder)}/{unit}.json"


def leases_folder(folder: str) -> str:
    """Return the folder of the leases on units."""
    return f"{folder}/{LEASES}"


def lease_key(folder: str, unit: str) -> str:
    """Return the key of the lease on a unit."""
    return f"{leases_folder(folder)}/{unit}.json"


def manifest_key(folder: str) -> str:
    """Return the key of the manifest that says that a folder is complete."""
    return f"{folder}/manifest.json"


def shard_key(folder: str, sha256: str) -> str:
    """Return the key of a Parquet shard, named after its content."""
    return f"{folder}/{sha256}.parquet"


def failure_key(folder: str) -> str:
    """Return the key of why the last call of a stage failed."""
    return f"{folder}/failed.json"


def stem(name: str) -> str:
    """Return what a JSON object in a folder is of: a unit, a scorer, the number of a state."""
    return name.removesuffix(".json")


def unit_name(number: int) -> str:
    """Return the name of a unit of a stage; those of a cache are named after their sequences."""
    return f"u{number:05d}"


def parent(key: str) -> str:
    """Return the folder that a key or a folder is in."""
    return key.rpartition("/")[0]


def owner(key: str) -> str:
    """Return the run, or the scorer, in whose folder a key is; "" where it is in none."""
    return key.split("/")[1] if key.startswith((f"{RUNS}/", f"{CACHE}/")) else ""


# --- runs/<run>/ ---

CHECKPOINTS, ROUNDS, STATES, METRICS = "checkpoints", "rounds", "state", "metrics"
ROLLOUT, GRADE = "rollout", "grade"
SAMPLES = "samples"  # of teachers, each in a folder of its own
SCORE = "score"  # a folder for each teacher is below it
STUDENT, TEACHER = "student", "teacher"  # what is graded; each teacher is below the second


def run_folder(run: str) -> str:
    """Return the folder of everything that belongs to a run alone."""
    return f"{RUNS}/{run}"


def run_key(run: str) -> str:
    """Return the key of the record of what a run is."""
    return f"{run_folder(run)}/run.json"


def prompts_folder(run: str, split: str) -> str:
    """Return the folder of the manifest that pins a run's prompts, to train on or to evaluate."""
    return f"{run_folder(run)}/{PROMPTS}/{split}"


ENGINE = "engine"  # what was held against transformers, among what a run admitted


def admission_key(run: str, subject: str, mark: str) -> str:
    """Return the key of what was admitted to a run: the student, a teacher, or an engine."""
    return f"{run_folder(run)}/admission/{subject}/{mark}.json"


def teacher_key(run: str, teacher: str) -> str:
    """Return the key of the record of which model stands behind a teacher's name."""
    return f"{run_folder(run)}/teachers/{teacher}.json"


def checkpoint_folder(run: str, index: int | None) -> str:
    """Return the folder of a checkpoint; None is the base of a run's adapters."""
    return f"{run_folder(run)}/{CHECKPOINTS}/{'base' if index is None else f'{index:04d}'}"


def stage_folder(run: str, round_index: int, stage: str) -> str:
    """Return the folder of a stage of a round."""
    return f"{run_folder(run)}/{ROUNDS}/{round_index:04d}/{stage}"


def sample_stage(teacher: str | None) -> str:
    """Return the stage of a round in which the student samples, or a teacher."""
    return ROLLOUT if teacher is None else f"{SAMPLES}/{teacher}"


def grade_stage(teacher: str | None) -> str:
    """Return the stage of a round that grades what the student has sampled, or a teacher."""
    return GRADE if teacher is None else f"{sample_stage(teacher)}/{GRADE}"


def score_stage(teacher: str) -> str:
    """Return the stage of a round that is a teacher's part of scoring."""
    return f"{SCORE}/{teacher}"


def plan_key(rollout_folder: str) -> str:
    """Return the key of what a round samples."""
    return f"{rollout_folder}/plan.json"


def drift_key(score_folder: str) -> str:
    """Return the key of how far a teacher's engine is from transformers."""
    return f"{score_folder}/drift.json"


def baseline_folder(run: str, label: str) -> str:
    """Return the folder of the evaluation of the student as it came, or of a teacher."""
    return f"{run_folder(run)}/baseline/{label}"


def teacher_label(teacher: str) -> str:
    """Return the label of a teacher that is graded."""
    return f"{TEACHER}/{teacher}"


def states_folder(run: str) -> str:
    """Return the folder of the files of a run's learner states."""
    return f"{run_folder(run)}/{STATES}"


def state_key(run: str, sha256: str, ending: str) -> str:
    """Return the key of a file of a learner's state, named after its content."""
    return f"{states_folder(run)}/{sha256}.{ending}"


def metrics_folder(run: str) -> str:
    """Return the folder of the figures of optimizer steps."""
    return f"{run_folder(run)}/{METRICS}"


def times_folder(run: str, round_index: int) -> str:
    """Return the folder of how long each call of a round's stages took."""
    return f"{metrics_folder(run)}/times/{round_index:04d}"


def time_key(run: str, round_index: int, *, call: str, random: str) -> str:
    """Return the key of how long a call of a stage took; `call` tells it too, as `timed_call`."""
    return f"{times_folder(run, round_index)}/{call}-{random}.parquet"


def timed_call(stage: str, seconds: float) -> str:
    """Return a call of a stage in the name of its time, so that a listing tells how long it was."""
    return f"{stage}-{round(1000 * seconds)}ms"


def time_of(name: str) -> tuple[str, float] | None:
    """Return stage and seconds that the name of a time tells, None for one that older opd wrote."""
    found = TIMED.match(name)
    return (found[1], int(found[2]) / 1000) if found else None


# --- cache/<scorer>/ ---


def scorer_folder(scorer: str) -> str:
    """Return the folder of a scorer's cache."""
    return f"{CACHE}/{scorer}"


def scorer_key(scorer: str) -> str:
    """Return the key of the scorer in words."""
    return f"{scorer_folder(scorer)}/scorer.json"


def scorer_of_key(key: str) -> str | None:
    """Return the scorer in whose folder a key is, None for keys elsewhere."""
    return key.split("/")[1] if key.startswith(f"{CACHE}/") else None


def renumbering_key(scorer: str) -> str:
    """Return the key of the record of which renumbering of ids new shards use."""
    return f"{scorer_folder(scorer)}/renumbering.json"


def renumberings_folder(scorer: str) -> str:
    """Return the folder of the renumberings themselves, named after their content."""
    return f"{scorer_folder(scorer)}/renumbering"


def data_folder(scorer: str) -> str:
    """Return the folder of a scorer's shards."""
    return f"{scorer_folder(scorer)}/data"


def index_folder(scorer: str) -> str:
    """Return the folder of a scorer's sequence index."""
    return f"{scorer_folder(scorer)}/index"


IndexFolder = Literal["new", "states", "parts", "tables", "damaged"]
"""What an index has: units that are not merged yet, states, sorted entries, shards they name; and
what was set aside."""


def index_part(index: str, part: IndexFolder) -> str:
    """Return one of the folders in an index's folder."""
    return f"{index}/{part}"


def index_state_key(index: str, number: int) -> str:
    """Return the key of a state of an index; the highest number counts."""
    return f"{index_part(index, 'states')}/{number:012d}.json"


# --- scorers/, pins/, gc/, probe/ ---


def name_key(name: str) -> str:
    """Return the key of the record that gives a scorer a name."""
    return f"scorers/{name}.json"


def pin_key(scorer: str) -> str:
    """Return the key of what protects a scorer from `opd cache gc`."""
    return f"{PINS}/{scorer}.json"


def sweep_key() -> str:
    """Return the key of what `opd cache gc` may delete, while it deletes."""
    return f"{SWEEPS}/sweep.json"


def probe_key(random: str) -> str:
    """Return the key that is created twice to see whether the store refuses the second time."""
    return f"{PROBES}/{random}"
