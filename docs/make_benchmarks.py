"""Write docs/benchmarks.md: what opd costs, as measured, beside what it was meant to cost.

Usage: python docs/make_benchmarks.py [--check]

Figures, commands and machines come from benchmarks/results/*.json, and nothing is typed in here but
goals and reasons. With --check nothing is written, and the exit status is 1 where the file is out
of date.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated import main

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
TARGET = Path(__file__).with_name("benchmarks.md")

INTRODUCTION = """\
# Benchmarks

<!-- Written by docs/make_benchmarks.py from benchmarks/results/*.json. -->

What opd costs, against the same work without it. A ratio is opd over the other side, and both were
measured in turn in one run, so that a slow spell of the machine meets both. `python -m benchmarks`
lists the benchmarks; `make bench ARGS='NAME --quick'` runs a short one, `make peers` the one
against TRL. The files have each case, with the spread behind each median.
"""


@dataclass(frozen=True)
class Figure:
    """A figure, what it says, and what it was meant to be."""

    name: str
    about: str
    most: float | None = None
    least: float | None = None
    why: str = ""
    """Why a goal is missed; not told where it is met."""

    def missed(self, value: float) -> bool:
        """Return whether a value is not what it was meant to be."""
        too_much = self.most is not None and value > self.most
        return too_much or (self.least is not None and value < self.least)

    @property
    def goal(self) -> str:
        """Return the goal in words."""
        if self.most is not None:
            return f"at most {self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"


STEP = (
    "What DeepSpeed, the loss and the checks around a micro-batch do costs milliseconds whatever "
    "the model, and a micro-batch of the smallest student takes a few. It is gone at 20 million "
    "parameters."
)

PLACES = {"cuda": " on a GPU", "s3": " on S3", "model": " of a real model"}

PAGES: dict[str, tuple[str, tuple[Figure, ...]]] = {
    "support": (
        "The gradient of a step from what a cache keeps of each token, against the one over the "
        "whole vocabulary: [objectives.md](objectives.md) has the plot.",
        (
            Figure(
                "default_cosine",
                "cosine at the default's worst case: a student near or far, random models, steps "
                "of 4,096 positions",
                least=0.997,
            ),
        ),
    ),
    "support-model": (
        "The same with a model of 270 million parameters, its vocabulary cut to the 32,768 ids "
        "with the most mass.",
        (
            Figure(
                "default_cosine",
                "cosine at the default's worst case: a student near or far, steps of 640 positions",
                least=0.98,
            ),
        ),
    ),
    "peers": (
        "A step of `opd run` in rounds of ten, against TRL's `DistillationTrainer` on the same "
        "files: 64 sequences, a student of 141 thousand parameters, one CPU thread. CPU "
        "seconds, and both sides in turn: the machine had other work, which slows both.",
        (
            Figure(
                "step_ratio",
                "CPU seconds of a step, opd over TRL",
                most=0.5,
                why="What is left is the models' own work: three quarters of sampling and more of "
                "scoring are inside the forward pass of transformers, which TRL pays as well, and "
                "half of the teacher's are matrix products at the speed of the CPU. To go below, "
                "layers would have to be computed in fewer, fused operations.",
            ),
            Figure("accuracy_opd", "share of held-out problems that opd's student solves"),
            Figure("accuracy_trl", "the same of TRL's student"),
            Figure("peak_mb_opd", "peak memory of opd, MB"),
            Figure("peak_mb_trl", "peak memory of TRL, MB"),
        ),
    ),
    "objectives": (
        "The quickstart's task, learned by every objective from the same rollouts where that is "
        "possible: [objectives.md](objectives.md) has the table.",
        (
            Figure(
                "objectives_that_reach", "objectives that reach 95 % of the teacher in all seeds"
            ),
            Figure("objectives_measured", "objectives that were measured"),
            Figure(
                "fewest_seeds",
                "seeds of the one with fewest",
                least=5,
                why="A run takes minutes, and a machine with other work did not do all of them.",
            ),
            Figure("default_least", "least accuracy of the default over the teacher's", least=0.98),
        ),
    ),
    "learner": (
        "An optimizer step of the learner against a plain torch loop, how rows are dealt to 1 to "
        "64 ranks (computed from the plan, the worst of twelve cases), and how long it waits for "
        "shards on S3 at 50 MB/s.",
        (
            Figure("step_ratio", "CPU seconds of a step over the loop's, 20M student", most=1.05),
            Figure("step_ratio_small", "the same, the smallest student", most=1.15, why=STEP),
            Figure(
                "critical_path_ratio",
                "time of the busiest rank over a perfect split; ranks meet once a step (ZeRO 0, 1)",
                most=1.1,
            ),
            Figure("padding_share", "share of the work that is padding", most=0.05),
            Figure(
                "waiting_path_ratio",
                "the first ratio where ranks meet at every micro-batch (ZeRO 2, 3)",
                most=1.1,
                why="The worst case is 64 ranks with eight rows of up to 16,384 tokens each, and "
                "the only one above 1.1. The longest row is .86 of all that a rank has to do and "
                "must be in one micro-batch. The others cannot do as much in it: a micro-batch is "
                "limited by its tokens, that is by memory, and attention makes one long row "
                "costlier than short ones of as many tokens. Under that limit no split gets below "
                "1.24 in the median step.",
            ),
            Figure(
                "data_wait_share",
                "share of its time in which it waits for data",
                most=0.02,
                why="It is wall time, and was measured while other work kept both cores busy: "
                "readers and the S3 server waited for a core, not for the line. The same "
                "readers gave .003 on this machine when it was calm.",
            ),
            Figure(
                "decode_cpu_ratio",
                "CPU seconds in which four ranks on one machine read a round, over one rank's",
                most=1.2,
                why="A shard is decoded once, and then written to the file that all ranks map: "
                "that fills its pages a second time. Ranks that decode for themselves pay four "
                "times and more.",
            ),
        ),
    ),
    "learner-cuda": (
        "The learner's step on a GPU, a student of 180 million parameters and a smaller one.",
        (
            Figure(
                "step_ratio",
                "seconds of a step over the loop's",
                most=1.05,
                why="Measured before rows were packed, and not again: no GPU was at hand since. "
                "12 to 23 ms of a micro-batch are Python around it, and the micro-batches of this "
                "benchmark have 1,024 tokens, which a GPU computes in hardly more.",
            ),
        ),
    ),
    "losses": (
        "Head and loss together in chunks, against three matrix products of the same size, and "
        "against a plain full log-softmax.",
        (
            Figure(
                "floor_ratio",
                "CPU time in float32 over three products, with entropy",
                most=1.1,
                why="Measured beside other work: what is done to the logits waits for memory, "
                "which neighbours share, more than the products do.",
            ),
            Figure(
                "floor_ratio_bf16",
                "the same in bfloat16",
                most=1.3,
                why="Logits of a bfloat16 learner are float32 on purpose, so that they are not "
                "rounded (cosine of the gradient above .9999, it was .994). This CPU has "
                "instructions for bfloat16, which the floor uses and a float32 product cannot. On "
                "a GPU the product sums in float32 by itself: see the next table.",
            ),
            Figure("peak_ratio", "extra memory over that of a plain loss", most=0.125),
        ),
    ),
    "losses-cuda": (
        "The same on a GPU, in bfloat16, 16,384 tokens and 151,936 ids.",
        (
            Figure("floor_ratio_bf16", "time over three products", most=1.3),
            Figure("floor_ratio", "the same in float32", most=1.3),
        ),
    ),
    "score": (
        "The teacher pass through engine and cache on `hf`, against a bare loop.",
        (
            Figure(
                "score_ratio",
                "tokens per second over the bare loop's",
                least=0.98,
                why="It is the smallest teacher's, of a vocabulary of 512: tail, entropy and rank, "
                "which the bare loop does not make, cost a tenth of a forward pass that is as "
                "small. The teacher of 20 million parameters is at 1.25, for logits are worked on "
                "in pieces that the CPU's caches hold.",
            ),
        ),
    ),
    "engines": (
        "`opd score` and `opd rollout` on vLLM, against vLLM's bare loop in the same engine.",
        (
            Figure(
                "score_ratio",
                "tokens per second over the bare loop's",
                least=0.98,
                why="What vLLM returns of each token are Python objects, and turning them into "
                "arrays takes a tenth of the time with a model as small as this one.",
            ),
            Figure("rollout_ratio", "sampled tokens per second over the bare loop's", least=0.98),
        ),
    ),
    "rollout": (
        "Sampling with the `hf` engine, against transformers' own `generate`.",
        (Figure("rollout_ratio", "tokens per second over those of `generate`", least=0.98),),
    ),
    "cache": (
        "Bytes, error and speed of the codecs, on a file of a real teacher's scores.",
        (
            Figure("packed_bytes_per_token", "bytes of a token at k = 64, `packed-v1`"),
            Figure("packed_kl_mean", "mean error of what is read back, nats"),
            Figure("packed_encode_tokens_per_cpu_s", "tokens encoded per CPU second"),
            Figure("packed_decode_tokens_per_cpu_s", "tokens decoded per CPU second"),
            Figure("typed_bytes_per_token", "bytes of a token, `typed-v1`"),
        ),
    ),
    "storage": (
        "Shards published and read in a folder, and whether publishing slows with history.",
        (
            Figure("publish_per_s", "shards published per second, each safe on the disk"),
            Figure("read_per_s", "shards read and verified per second"),
            Figure("growth_ratio", "cost with much history over cost with none", most=1.1),
        ),
    ),
    "storage-s3": (
        "The same on an S3 server of this machine.",
        (
            Figure("publish_per_s", "shards published per second"),
            Figure("read_per_s", "shards read and verified per second"),
            Figure("growth_ratio", "cost with much history over cost with none", most=1.1),
        ),
    ),
    "index": (
        "Looking sequences up among ten million.",
        (
            Figure("lookup_s", "seconds of looking a round's sequences up"),
            Figure("lookup_memory_mb", "memory that this takes, MB"),
        ),
    ),
    "chaos": (
        "Runs of the quickstart's size on S3 while processes and server die and requests fail.",
        (
            Figure("kills", "processes killed"),
            Figure("faults", "requests that failed on purpose"),
            Figure("runs", "runs, each of which ended with every promise kept"),
        ),
    ),
    "alarms": (
        "Runs of three rounds that are well, of the quickstart's task and of a chat task with 80 "
        "new tokens, each with five seeds and models of their own; and faults that are planted in "
        "the models, files, settings or the engine of a run: [alarms.md](alarms.md).",
        (
            Figure("false_alarms", "alarms of the runs that are well", most=0),
            Figure("healthy_runs", "runs that are well"),
            Figure("faults_named", "faults that an alarm names, or opd refuses in words", least=13),
            Figure("faults_planted", "faults that were planted, some of the ten in two ways"),
        ),
    ),
    "fuzz": (
        "Parsers and decoders on random and damaged input.",
        (Figure("executions", "inputs tried, each ending in data or in a refusal"),),
    ),
}
"""Name of a file of results → what is measured, and the figures that are shown."""


def render() -> str:
    """Return the text of the page."""
    unknown = sorted({path.stem for path in RESULTS.glob("*.json")} - PAGES.keys())
    assert not unknown, f"docs/make_benchmarks.py does not say what {unknown} measure"
    there = [name for name in PAGES if (RESULTS / f"{name}.json").exists()]
    return "\n".join([INTRODUCTION, *(line for name in there for line in _benchmark(name))]) + "\n"


def _benchmark(name: str) -> Iterator[str]:
    about, figures = PAGES[name]
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    subject, _, place = name.partition("-")
    yield f"## {subject}{PLACES.get(place, '')}\n"
    yield f"{about}\n"
    yield from ("| figure | | measured | goal |", "|-|-|-|-|")
    missed = list[str]()
    for figure in figures:
        if figure.name not in found:
            continue
        value = float(found[figure.name])
        goal = figure.goal
        if figure.missed(value):
            assert figure.why, f"{name}: {figure.name} misses its goal, and nothing says why"
            goal += ", **missed**"
            missed.append(f"- `{figure.name}` misses its goal. {figure.why}")
        yield f"| `{figure.name}` | {figure.about} | {_number(value)} | {goal} |"
    yield from ("", *missed, *([""] if missed else []))
    yield f"`{found['command']}` on {_machine(found['machine'])}: "
    yield f"[{name}.json](../benchmarks/results/{name}.json).\n"


def _number(value: float) -> str:
    """Return a number with four digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _machine(machine: dict[str, Any]) -> str:
    words = [f"{machine['cores']} cores of {machine['cpu']}"]
    if machine.get("gpu"):
        words.insert(0, f"{machine.get('gpus', 1)} {machine['gpu']}")
    return ", ".join(words)


if __name__ == "__main__":
    main(TARGET, render, __doc__)
