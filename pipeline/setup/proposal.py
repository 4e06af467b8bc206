"""Values for a new run, each with its reason, from what is known of models, prompts, machine. Pure.

Promises: proposes only what differs from the profile that it names; at most fifteen settings.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.sizing.learning import learning_bytes, rough_bytes
from pipeline.sizing.machine import Machine
from pipeline.sizing.parts import GIB, total
from schemas.config.profiles.base import full_name, profile_values

MEMORY_SHARE = 0.7
"""Share of a memory that weights and optimizer may take: the rest is for activations."""

RATES = ((3e7, 1e-4), (3e8, 3e-5), (1e9, 1e-5), (4e9, 5e-6), (math.inf, 2e-6))
"""Parameters up to which → learning rate where all weights learn."""

LORA_RATES = ((3e8, 3e-4), (4e9, 1e-4), (math.inf, 5e-5))

STEPS = 8
"""Optimizer steps of a round: many more, and samples go stale inside it."""

MOST_SAMPLES = 8
"""Samples of a prompt, where there are too few prompts."""

LEAST_NEW = 16
"""Tokens of a response below which rather the prompts are limited."""

ROOM, PLACES = 1.25, 16
"""Longest prompt over the longest that was seen, rounded up to a multiple."""

ROUNDS = range(5, 51)

LARGEST_K = 64
"""Ids of a top-k that opd chooses at most, where a profile leaves it to the loss."""


@dataclass(frozen=True)
class Facts:
    """What a proposal is made from; None for what is not known."""

    machine: Machine
    parameters: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    """Tokens that student and teacher hold, the fewer of both."""
    teacher_parameters: int | None = None
    prompts: int | None = None
    """How many there are; None where nobody counted to the end."""
    longest: int | None = None
    """Tokens of the longest prompt that was seen."""
    unusable: str = ""
    """Prompts that cannot be used, in words; empty where all can."""
    answered: int = 0
    """Chats that end with an answer."""
    is_graded: bool = False
    base: str | None = None
    """The profile that was asked for."""


@dataclass(frozen=True)
class Value:
    """A setting, and why."""

    section: str
    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Proposal:
    """A profile and the settings that differ from it."""

    base: str
    """With its version."""
    reason: str
    values: tuple[Value, ...]
    warnings: tuple[str, ...] = ()


def propose(facts: Facts) -> Proposal:
    """Return what suits a run."""
    asked, reason = _profile(facts)
    base = full_name(asked, where="--base")
    name = base.partition("@")[0]
    tree = profile_values(base)
    lengths = list(_lengths(facts, tree))
    values = [
        *_engines(facts, name),
        *lengths,
        *_rounds(facts, tree),
        *_learning(facts, tree, name),
    ]
    vocabulary = facts.vocabulary
    kept = tree["score"].get("k", LARGEST_K)
    if vocabulary is not None and vocabulary < kept:
        values.append(Value("score", "k", vocabulary, f"all {vocabulary} ids of the vocabulary"))
    warnings = tuple(_warnings(facts, name))
    return Proposal(base, reason, tuple(values), warnings)


def _profile(facts: Facts) -> tuple[str, str]:
    if facts.base is not None:
        return facts.base, "as you asked"
    gpus = facts.machine.gpus
    if not gpus:
        return "opd:cpu", "no GPU was found on this machine"
    if facts.parameters is None:
        return "opd:lora", "the student's size is not known here: an adapter takes least memory"
    needed, held = total(learning_bytes(facts.parameters, processes=len(gpus))), min(gpus)
    words = f"weights and optimizer take {needed / GIB:.0f} GiB of each GPU's {held / GIB:.0f}"
    if needed <= MEMORY_SHARE * held:
        return "opd:full", f"all weights learn: {words}"
    return "opd:lora", f"an adapter learns: {words} if all weights did"


def _engines(facts: Facts, name: str) -> Iterator[Value]:
    if not facts.machine.gpus or not facts.machine.has_vllm or name == "opd:cpu":
        return
    yield Value("rollout", "engine", "vllm", "sampling is most of the work, and vLLM is installed")
    if facts.is_graded:
        yield Value("eval", "engine", "vllm", "as the rollout")


def _lengths(facts: Facts, tree: dict[str, Any]) -> Iterator[Value]:
    longest, context = facts.longest, facts.context
    new, most = tree["rollout"]["max_new_tokens"], tree["prompts"]["max_tokens"]
    reason = ""
    if longest is not None:
        most = math.ceil(longest * ROOM / PLACES) * PLACES
        reason = f"the longest of those that were read has {longest} tokens"
    skipped = facts.unusable
    if context is not None:
        # a teacher reads one token more than there are
        if most + LEAST_NEW + 1 > context:
            most = context // 2
            reason = f"half of the {context} tokens that the models hold"
            if longest is not None and longest > most:
                skipped = skipped or f"some have more than {most} tokens"
        if most + new + 1 > context:
            new = context - most - 1
            words = f"what the {context} tokens of the models leave beside a prompt"
            yield Value("rollout", "max_new_tokens", new, words)
    if most != tree["prompts"]["max_tokens"]:
        yield Value("prompts", "max_tokens", most, reason)
    if facts.answered:
        words = "chats that end with an answer are read without it"
        yield Value("prompts", "answered", "drop", words)
    if skipped:
        yield Value("prompts", "on_error", "skip", f"left out and counted: {skipped}")


def _rounds(facts: Facts, tree: dict[str, Any]) -> Iterator[Value]:
    """Yield the size of a round and how many there are, where prompts are few or many."""
    planned, count = tree["rollout"]["prompts_per_round"], facts.prompts
    if count is None:
        return
    each, samples = min(planned, count), 1
    if count < planned:
        samples = min(MOST_SAMPLES, max(1, planned // count))
        yield Value("rollout", "prompts_per_round", each, f"there are {count} prompts")
        if samples > 1:
            words = "other answers to the same prompts, for want of other prompts"
            yield Value("rollout", "samples_per_prompt", samples, words)
        steps = max(1, min(tree["train"]["sequences_per_step"], each * samples // STEPS))
        if steps != tree["train"]["sequences_per_step"]:
            words = f"{STEPS} optimizer steps a round" if steps > 1 else "there are few sequences"
            yield Value("train", "sequences_per_step", steps, words)
    else:
        rounds = min(max(math.ceil(count / each), ROUNDS[0]), ROUNDS[-1])
        if rounds != tree["run"]["rounds"]:
            times = rounds * each / count
            words = f"{times:.2g} times through {count:,} prompts; may be raised later"
            yield Value("run", "rounds", rounds, words)


def _learning(facts: Facts, tree: dict[str, Any], name: str) -> Iterator[Value]:
    gpus = len(facts.machine.gpus)
    if gpus > 1 and name != "opd:cpu":
        yield Value("train", "num_processes", gpus, "one process for each GPU")
    if facts.parameters is None:
        return
    rates = LORA_RATES if name == "opd:lora" else RATES
    rate = next(rate for most, rate in rates if facts.parameters <= most)
    if rate != tree["train"]["learning_rate"]:
        words = f"for a student of {facts.parameters / 1e6:,.0f} million parameters"
        yield Value("train", "learning_rate", rate, words)


def _warnings(facts: Facts, name: str) -> Iterator[str]:
    machine, learns, reads = facts.machine, facts.parameters or 0, facts.teacher_parameters or 0
    on_gpu = name != "opd:cpu"
    needed = rough_bytes(
        learns, reads, processes=len(machine.gpus), on_gpu=on_gpu, adapted=name == "opd:lora"
    )
    held, where = machine.memory_bytes, "this machine has"
    if on_gpu:
        held, where = min(machine.gpus, default=0), "a GPU of this machine has"
    if held and needed > held:
        yield (
            f"these models need {needed / GIB:.0f} GiB, and {where} {held / GIB:.0f}: they will "
            "not fit. Take smaller ones, or run on a larger machine"
        )
