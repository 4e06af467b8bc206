"""What trackers' own readers find, as JSON; runs in the environment of their libraries."""

import json
import sys
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


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
