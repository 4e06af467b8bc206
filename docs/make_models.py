"""Write docs/models.md: which architectures opd was held against transformers on, with what end.

Usage: python docs/make_models.py [--check]

The models are those of tests/zoo/zoo.toml, which tests/zoo/test_zoo.py holds true; what `make zoo`
found of every other causal architecture is in tests/zoo/everything.json. With --check nothing is
written, and the exit status is 1 where the file is out of date.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generated import main

ZOO = Path(__file__).parent.parent / "tests" / "zoo"
TARGET = Path(__file__).with_name("models.md")

WORKS, UNTRIED = "works", "not tried"

INTRODUCTION = """\
# Models

<!-- Written by docs/make_models.py from tests/zoo/zoo.toml and tests/zoo/everything.json. -->

Does opd compute your model's architecture rightly? Look in your model's `config.json` for
`model_type`, and for that name on this page. The results are measured on tiny random models: each
goes the whole way, loaded, sampled from, scored, trained one step, exported and loaded again. Every
log-probability is held against a plain float32 forward of transformers, one row at a time, without
padding or cache.

- **works**: all of them are within 1e-3 nats of it, at every position. So is what was trained and
  exported, of what a plain loop of torch gives.
- **refused**: opd ends with exit code 2 and says why, before anything is sampled. The words of the
  refusal are quoted.
- **not tried**: nothing is known. It may work: opd holds every model that it loads, known or not,
  against [other readings of it](engines.md#what-is-held-when-a-model-is-loaded), and refuses one
  that it would read wrongly.

`hf` and `vllm` are the [engines](engines.md) that sample and score; the learner loads what `hf`
loads. Sizes, tokenizers and number formats of real models differ from those here, and rows of a few
dozen tokens cross only tiny windows. So try your own: `opd doctor -c run.toml --engines` does, and
says [up to which length](engines.md#how-long-the-rows-of-trials-are). Which quantised models can be
teachers is told [with the engines](engines.md#what-a-model-must-be).
"""

ZOO_WORDS = """\
## The zoo

Held by `make test` on `hf`. The column `vllm` is what `make zoo ARGS='--engine vllm'` found on a
CPU in float32, where vLLM lacks some of what it has on GPUs: some of its refusals are of a CPU, and
some of sizes as small as these ("is not divisible by block_size").
"""


def render() -> str:
    """Return the text of the page."""
    table = tomllib.loads((ZOO / "zoo.toml").read_text(encoding="utf-8"))["model"]
    parts = [
        INTRODUCTION,
        ZOO_WORDS,
        "| model | `model_type` | what makes it different | `hf` | `vllm` |",
        "|-|-|-|-|-|",
        *(_row(entry) for entry in table),
    ]
    everything = ZOO / "everything.json"
    if everything.exists():
        found = json.loads(everything.read_text(encoding="utf-8"))
        parts += ["", *_everything(found["architectures"], found["transformers"])]
    return "\n".join(parts) + "\n"


def _row(entry: Mapping[str, Any]) -> str:
    words = [entry["name"], f"`{entry['kind']}`", entry["about"]]
    return f"| {' | '.join([*words, _outcome(entry['hf']), _outcome(entry['vllm'])])} |"


def _outcome(stated: str) -> str:
    if stated == WORKS or stated.startswith(UNTRIED):
        return stated
    return f"refused: “{stated}”"


def _everything(found: Mapping[str, Mapping[str, str]], version: str) -> Iterator[str]:
    yield (
        "## All causal architectures\n\n"
        "What `make zoo` found on `hf`, with every architecture that transformers "
        f"{version} has as a\ncausal language model. Its sizes are made small by their names "
        "alone: where that gives no\nmodel, or a large one, it is not tried.\n"
    )
    for result, words in (("works", "Work"), ("refused", "Refused"), ("not tried", "Not tried")):
        kinds = [kind for kind, outcome in found.items() if outcome["result"] == result]
        yield f"**{words}** ({len(kinds)}): {', '.join(f'`{kind}`' for kind in kinds)}.\n"
    yield "| refused or not tried | reason |\n|-|-|"
    for kind, outcome in found.items():
        if outcome["result"] != "works":
            yield f"| `{kind}` | {outcome['words']} |"


if __name__ == "__main__":
    main(TARGET, render, __doc__)
