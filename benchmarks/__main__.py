"""`python -m benchmarks NAME [--quick] [--json] [--out FILE]`: measure, then print or write."""

import argparse
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.kit.machine import machine, versions
from benchmarks.kit.measure import Result, Spread
from schemas.errors import OpdError

NAMES = {
    "alarms": "runs that are well, and ten planted faults: which alarms are raised",
    "cache": "each codec of scores: bytes per token, error and speed",
    "chaos": "runs on S3 while everything is killed and every request may fail: promises kept",
    "engines": "vLLM through the stages against vLLM's bare loop: scoring and sampling",
    "fuzz": "parsers and decoders on random and damaged inputs: data, or a refusal in words",
    "index": "looking sequences up among ten million, and whether history slows it",
    "learner": "a learner step against a plain torch loop",
    "losses": "head and loss in chunks against a full log-softmax: time and memory",
    "objectives": "the quickstart's task by every objective: accuracy of five seeds, by round",
    "peers": "rounds of opd run against TRL's trainer: cost of a step, accuracy, memory",
    "rollout": "sampling against transformers' generate",
    "score": "the teacher pass against a bare loop, and what storing it costs",
    "storage": "publishing and reading shards, and whether history slows it",
    "support": "gradients from what a cache keeps, against those of the whole vocabulary",
}
PLACES = {"alarms": "faults.alarms"}
"""Where a benchmark is that is not in the module of its name."""

DATA_HELP = (
    "cache: scores to measure with; peers: a folder that opd quickstart has made; support: a "
    "model's folder; alarms, objectives: a folder to keep runs in"
)
POSITIONS_HELP = "support: the most positions of a step that is measured"
MINUTES_HELP = "fuzz, chaos: how long it runs; objectives: when no more is begun"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
}
"""What a measurement needs to be one of one thread; set before torch is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks; return the exit code."""
    given = _parser().parse_args(arguments)
    if not given.names:
        for name, title in NAMES.items():
            print(f"{name:<10} {title}")
        return 0
    os.environ.update(ENVIRONMENT | ({"DS_ACCELERATOR": given.device} if given.device else {}))
    failed = False
    options = {name: getattr(given, name) for name in ("data", "minutes", "device", "positions")}
    for name in given.names:
        try:
            record = measure(name, quick=given.quick, seed=given.seed, options=options)
        except OpdError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
        failed = failed or bool(record.get("failures"))
        if given.out is not None:
            given.out.write_text(json.dumps(record, indent=1) + "\n")
        if given.json:
            print(json.dumps(record), flush=True)
        else:
            Console().print(table(record))
    return int(failed)


def measure(
    name: str, *, quick: bool, seed: int, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the record of one run of a benchmark.

    Args:
        name: the benchmark.
        quick: whether it is to take seconds.
        seed: root of everything random.
        options: further options, which not every benchmark has; None is not given.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    gc.collect()
    gc.freeze()  # every timing begins with a collection, which need not look at what is there now
    begin, used = time.perf_counter(), time.process_time()
    result: Result = importlib.import_module(f"benchmarks.{PLACES.get(name, name)}").run(
        quick=quick, seed=seed, **given
    )
    words = ["python", "-m", "benchmarks", name, *(["--quick"] if quick else [])]
    for key, value in given.items():
        words += [f"--{key}", _argument(value)]
    return {
        "benchmark": name,
        **{key: _rounded(value) for key, value in result.figures.items()},
        **result.nested,
        **result.found,
        "cases": [{key: _rounded(value) for key, value in case.items()} for case in result.cases],
        "seconds": _rounded(time.perf_counter() - begin),
        "cpu_seconds": _rounded(time.process_time() - used),
        "quick": quick,
        "seed": seed,
        "command": " ".join([*words, "--seed", str(seed)]),
        "machine": machine(),
        "versions": versions(),
    }


def _argument(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(record: dict[str, Any]) -> Table:
    """Return a record as a table: a column per case, a row per figure."""
    cases = record["cases"]
    shown = Table(title=f"{record['benchmark']}: {record['seconds']:.0f} s", title_justify="left")
    shown.add_column("median (min to max)", no_wrap=True)
    for case in cases:
        shown.add_column(str(case["case"]), justify="right")
    for key in dict.fromkeys(key for case in cases for key in case if key != "case"):
        shown.add_row(key, *(_words(case.get(key, "–")) for case in cases))
    return shown


def _rounded(value: Any) -> Any:
    if isinstance(value, Spread):
        return {key: _rounded(number) for key, number in asdict(value).items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_number(value['median'])} ({_number(value['min'])} to {_number(value['max'])})"
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*NAMES, []], help="see above")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON there")
    parser.add_argument("--data", type=Path, metavar="FILE", help=DATA_HELP)
    parser.add_argument("--minutes", type=float, metavar="M", help=MINUTES_HELP)
    parser.add_argument("--device", choices=["cuda"], help="losses, learner: measure on a GPU")
    parser.add_argument("--positions", type=int, choices=[640, 4096, 65536], help=POSITIONS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="root of everything random")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
