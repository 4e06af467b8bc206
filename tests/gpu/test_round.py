"""A round of the quickstart on a GPU: float32 as on a CPU, and bfloat16 with ZeRO."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.runs import finish, start

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

ON_GPU = [
    argument
    for section in ("rollout", "score", "train", "eval")
    for argument in ("--set", f"{section}.device=cuda")
]


def finished(*arguments: str | Path) -> dict[str, Any]:
    outcome = finish(start(*arguments, warm=False))
    assert outcome.code == 0, outcome.stderr[-6000:]
    return outcome.result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a quickstart of one round."""
    folder = tmp_path_factory.mktemp("quickstart") / "demo"
    finished("quickstart", folder, "--rounds", "1", "--json")
    return folder


def first_step(folder: Path, name: str) -> dict[str, Any]:
    (metrics,) = folder.glob(f"store/runs/{name}/metrics/*.parquet")
    found: dict[str, Any] = pq.read_table(metrics).to_pylist()[0]
    return found


@pytest.mark.parametrize(
    ("dtype", "zero_stage", "limit"), [("float32", 0, 1e-6), ("bfloat16", 1, 1e-2)]
)
def test_a_round_ends_and_begins_on_policy(
    folder: Path, dtype: str, zero_stage: int, limit: float
) -> None:
    name = f"gpu-{dtype}"
    changes = [f"run.name={name}", "run.rounds=1", f"train.dtype={dtype}"]
    changes += [f"train.zero_stage={zero_stage}"]
    line = ["run", "-c", str(folder / "run.toml"), *ON_GPU, "--json"]
    line += [argument for change in changes for argument in ("--set", change)]
    finished(*line)
    metrics = first_step(folder, name)
    assert 0 <= metrics["rollout_kl"] <= limit, metrics
    assert finished(*line)["units"] == 0
