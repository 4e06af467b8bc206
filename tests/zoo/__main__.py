"""`make zoo`: every causal architecture of transformers on hf, and the zoo's table on vLLM.

Usage: python -m tests.zoo [--engine hf|vllm] [--write] [NAME …]

It prints a line for each; with --write, what was found on hf is kept for docs/models.md.
"""

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from schemas.config.engines import EngineName
from schemas.errors import ConfigError
from tests.support.zoo import TABLE, WORKS, Entry, entries
from tests.support.zoomodels import kind_of, make_entry, shrunk
from tests.support.zooway import LIMIT, Teacher, plain, whole_way

EVERYTHING = TABLE.with_name("everything.json")

LARGEST = 5_000_000
"""Parameters of a model that counts as small."""

MOST_WORDS = 200

Outcome = tuple[str, str]
"""`works`, `refused`, `wrong` or `not tried`, and why."""


def main() -> None:
    """Try what is asked for; end with 1 where an architecture is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names; default all")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--write", action="store_true", help=f"write {EVERYTHING.name}")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers' gap
    chosen = [e for e in _all(asked.engine) if _is_asked(e.name, asked.names)]
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(Path(folder) / "teacher")
        for number, entry in enumerate(chosen):
            found[entry.name] = outcome(Path(folder) / str(number), entry, teacher, asked.engine)
            print(f"{entry.name:28} {found[entry.name][0]:10} {found[entry.name][1]}", flush=True)
    if asked.write:
        rows = {name: {"result": result, "words": words} for name, (result, words) in found.items()}
        text = {"transformers": transformers.__version__, "architectures": rows}
        EVERYTHING.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")
    sys.exit(any(result == "wrong" for result, _ in found.values()))


def _all(engine: EngineName) -> Iterator[Entry]:
    """Yield what an engine is tried on: vLLM on the table, hf on all that transformers has."""
    if engine == "vllm":
        yield from (entry for entry in entries() if entry.hf == WORKS)
        return
    known = {entry.kind: entry for entry in reversed(entries()) if entry.model is None}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        changes = known[kind].changes if kind in known else {}
        yield Entry(kind, kind, "", "", "", changes=changes)


def _is_asked(name: str, words: list[str]) -> bool:
    return not words or any(word.lower() in name.lower() for word in words)


def outcome(folder: Path, entry: Entry, teacher: Teacher, engine: EngineName) -> Outcome:
    """Return what comes of a model."""
    try:
        size = _parameters(entry)
        if size > LARGEST:
            return "not tried", f"sizes by their names leave {size:,} parameters"
        make_entry(folder, entry)
        ids = torch.arange(3, 9)[None]
        plain(folder)(input_ids=ids, use_cache=False)
    except Exception as error:  # any class's own code  # noqa: BLE001
        return "not tried", f"cannot be made small by names alone: {_short(error)}"
    try:
        gaps = whole_way(folder, teacher, engine)
    except ConfigError as error:
        return "refused", _short(error)
    except Exception as error:  # whatever it is, it is wrong  # noqa: BLE001
        return "wrong", f"{type(error).__name__}: {_short(error)}"
    step = max(gaps, key=lambda name: gaps[name])
    return WORKS if gaps[step] < LIMIT else "wrong", f"{gaps[step]:.1e} nats ({step})"


def _parameters(entry: Entry) -> int:
    name = entry.model or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[entry.kind]
    with torch.device("meta"):
        made = getattr(transformers, name)(shrunk(kind_of(entry.kind), entry.changes))
    return sum(parameter.numel() for parameter in made.parameters())


def _short(error: Exception) -> str:
    """Return the words of an error in one line, without folders of this run."""
    text = " ".join(re.sub(r"(in |the model )?/\S+?(?=[,:;)\s])", "…", str(error)).split())
    text = text.replace("|", "/")
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}…"


if __name__ == "__main__":
    main()
