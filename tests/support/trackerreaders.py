"""What trackers' own readers find, as JSON; runs in the environment of their libraries."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensorboard(folder: str) -> dict[str, Any]:
    """Return scalars as [step, value], and texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    return {
        "scalars": {t: [[e.step, e.value] for e in found.Scalars(t)] for t in tags["scalars"]},
        "texts": {
            t: [e.tensor_proto.string_val[0].decode() for e in found.Tensors(t)]
            for t in tags["tensors"]
        },
    }


def mlflow(database: str, name: str) -> dict[str, Any]:
    """Return scalars as [step, value], settings, tags and files of the only run of a name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("opd").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    history = {n: client.get_metric_history(run.info.run_id, n) for n in run.data.metrics}
    return {
        "scalars": {n: [[m.step, m.value] for m in found] for n, found in history.items()},
        "settings": dict(run.data.params),
        "tags": dict(run.data.tags),
        "status": run.info.status,
        "files": sorted(f.path for f in client.list_artifacts(run.info.run_id, "samples")),
        "reports": [f.path for f in client.list_artifacts(run.info.run_id) if not f.is_dir],
    }


def _stored(file: Path) -> Iterator[bytes]:
    """Yield the records of a file of W&B: LevelDB's log format, behind a header of 7 bytes."""
    data, place, joined = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        joined += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield joined
            joined = b""


def wandb(folder: str) -> dict[str, Any]:
    """Return the rows that offline runs hold, their ids, settings and artifacts."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, ids, artifacts = [], [], []
    settings: dict[str, Any] = {}
    for file in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb")):
        for data in _stored(file):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                names = {".".join(one.nested_key) or one.key: one for one in record.history.item}
                rows.append({name: json.loads(one.value_json) for name, one in names.items()})
            elif kind == "run":
                ids.append(record.run.run_id)
                told = record.run.config.update
                settings |= {one.key: json.loads(one.value_json) for one in told}
            elif kind == "artifact":
                artifacts.append(record.artifact.name)
    return {"rows": rows, "ids": ids, "settings": settings, "artifacts": artifacts}


def trackio(folder: str) -> dict[str, Any]:
    """Return scalars as [step, value], settings, tables and reports of the only run."""
    os.environ["TRACKIO_DIR"] = folder
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("opd")
    scalars: dict[str, list[list[float]]] = {}
    tables = []
    for row in SQLiteStorage.get_logs("opd", run.name, run_id=run.id):
        tables += [row.pop("samples")["_value"]] if "samples" in row else []
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                scalars.setdefault(name, []).append([row["step"], value])
    return {
        "id": run.id,
        "scalars": scalars,
        "settings": run.config,
        "tables": tables,
        "reports": [
            [one["name"], len(one["versions"])] for one in SQLiteStorage.list_artifacts("opd")
        ],
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
