"""The head of a report in sentences: what was taught, how far it came, what it cost. Pure."""

from collections.abc import Iterator, Sequence

import polars as pl

from pipeline.report.figures import RunFigures
from pipeline.report.stored.records import STAGES
from pipeline.report.written import in_bytes, written
from pipeline.runs.grades.intervals import Interval, accuracy_interval
from schemas.foreign import without_secrets
from schemas.records.runs import EvalManifest


def taught(figures: RunFigures) -> list[str]:
    """Return what was taught to whom, and where it stands."""
    config, rounds = figures.records.run.config, figures.rounds
    teachers = " and ".join(f"{t.model} ({name})" for name, t in config.teachers.items())
    prompts = figures.records.prompts
    asked = "prompts not pinned yet" if prompts is None else f"{prompts.rows:,} prompts"
    lora = " as an adapter" if config.train.lora is not None else ""
    done = sum(one.train is not None for one in figures.records.rounds)
    words = [
        f"{config.student.model} learns{lora} from {teachers}, on {asked} of "
        f"{config.prompts.train}, with the loss {config.loss.kind}.",
        f"{done} of {config.run.rounds} rounds are trained"
        + (f", {len(rounds)} have begun." if len(rounds) > done else "."),
    ]
    return [without_secrets(line) for line in (*words, *_under_way(figures))]


def came(figures: RunFigures) -> list[str]:
    """Return how far the student came, against its start and its teachers."""
    last, words = figures.last, []
    now = Interval(*(last.get(f"accuracy{end}") for end in ("", "_low", "_high")))  # type: ignore[arg-type] # floats, or None where not graded
    start, samples = figures.records.start, _samples(figures)
    if now.mean is not None:
        graded = figures.rounds.drop_nulls("accuracy")["round"][-1]
        began = "" if start is None else f", from {_interval(start, samples)} at the start"
        words.append(f"Accuracy after round {graded} is {_shown(now)}{began}.")
    elif start is not None:
        words.append(f"Accuracy at the start is {_interval(start, samples)}.")
    else:
        words.append("Accuracy: not stored. An [eval] section grades each round.")
    for name, one in figures.records.teachers.items():
        share = (
            f": the student has {now.mean / one.accuracy:.0%} of it"
            if now.mean and one.accuracy > 0
            else ""
        )
        words.append(f"Teacher {name} has {_interval(one, samples)}{share}.")
    return words + list(_distance(figures))


def cost(rounds: pl.DataFrame) -> list[str]:
    """Return what some rounds cost, as `round_frame` has them: teacher tokens, bytes, time."""
    if rounds.is_empty() or not rounds["teacher_tokens"].drop_nulls().len():
        return ["Nothing was scored yet."]
    total = {name: float(rounds[name].drop_nulls().sum()) for name in rounds.columns}
    rows = total["paid_rows"] + total["reused_rows"]
    size = total["paid_bytes"] + total["reused_bytes"]
    share = total["reused_rows"] / rows if rows else 0.0
    words = [
        f"The teacher read {total['teacher_tokens']:,.0f} tokens; of {rows:,.0f} sequences, "
        f"{total['reused_rows']:,.0f} ({share:.1%}) were in the cache already.",
        f"Scores take {in_bytes(size)}, of which {in_bytes(total['reused_bytes'])} were reused.",
    ]
    if total["seconds"]:
        parts = [
            f"{s} {total[f'seconds_{s}'] / total['seconds']:.0%}"
            for s in STAGES
            if total[f"seconds_{s}"]
        ]
        words.append(
            f"All calls together took {written(total['seconds'], 'seconds')}: {', '.join(parts)}."
        )
    return words


def _under_way(figures: RunFigures) -> Iterator[str]:
    for one in figures.records.rounds[-1:]:
        for stage, units in one.begun.items():
            if units:
                yield f"Round {one.round}: {units} units of {stage} are done, the stage is not."


def _distance(figures: RunFigures) -> Iterator[str]:
    if figures.rounds.is_empty():
        return
    known = figures.rounds.drop_nulls("reverse_kl")
    if known.is_empty():
        yield "Distance to the teacher: nothing was scored yet."
        return
    first, last = known["reverse_kl"][0], known["reverse_kl"][-1]
    places = f"round {known['round'][0]}", f"round {known['round'][-1]}"
    if len(known) == 1:
        yield f"Reverse KL in {places[0]} is {written(first, 'nats')} nats per token."
    else:
        yield (
            f"Reverse KL went from {written(first, 'nats')} nats per token in {places[0]} to "
            f"{written(last, 'nats')} in {places[1]}."
        )


def _samples(figures: RunFigures) -> int:
    section = figures.records.run.config.eval
    return 1 if section is None else section.samples_per_prompt


def _interval(graded: EvalManifest, samples: int) -> str:
    return _shown(accuracy_interval(graded, samples=samples))


def _shown(found: Interval) -> str:
    mean, low, high = (written(value, "share") for value in found)
    return f"{mean} ({low} to {high})"


def headlines(figures: RunFigures) -> Sequence[tuple[str, list[str]]]:
    """Return the head's three parts that are of figures alone: title and sentences."""
    return (
        ("What was taught", taught(figures)),
        ("How far it came", came(figures)),
        ("What it cost", cost(figures.rounds)),
    )
