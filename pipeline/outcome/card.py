"""The card of an exported model: what it is, who taught it what, how well it does, what it cost.

Promises: every figure is of a stored record; what is not stored is said to be so. Pure.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.outcome.choice import Choice, evaluation_of
from pipeline.outcome.facts import Facts
from pipeline.outcome.markdown import as_json, escaped, fenced, header, table
from pipeline.report.stored.rounds import round_frame
from pipeline.report.words import cost
from pipeline.report.written import ABSENT, written
from pipeline.runs.gate import Gap
from pipeline.runs.grades.intervals import accuracy_interval
from schemas.records.runs import EvalManifest

USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)

text = "What is 12 times 12?"
if tokenizer.chat_template:
    chat = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))"""


def model_card(facts: Facts, choice: Choice, *, merged: bool) -> str:
    """Return the card of a model folder, as README.md has it.

    Args:
        facts: what is stored of the run.
        choice: the checkpoint.
        merged: whether the folder holds an adapter that was merged into its base.
    """
    adapter = choice.manifest.base is not None and not merged
    parts = [
        header(_header(facts, adapter=adapter)),
        f"# {escaped(facts.run.name)}, checkpoint {choice.number}",
        *_about(facts, choice, adapter=adapter, merged=merged),
        "## Use",
        fenced(USE, "python"),
        "## Teachers",
        _teachers(facts),
        "## Data",
        *_data(facts, choice),
        "## Objective",
        _settings(facts, ("loss.", "train.", "rollout.", "score.")),
        "## Figures",
        *_figures(facts, choice),
        "## Cost",
        *_cost(facts, choice),
        "## How it was made",
        *_made(facts, choice, merged=merged),
    ]
    return "\n\n".join(parts) + "\n"


def _header(facts: Facts, *, adapter: bool) -> dict[str, Any]:
    student = facts.run.config.student
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "on-policy-distillation", "opd"],
    }
    if student.revision is not None:  # a folder's name is no name of the hub
        values["base_model"] = student.model
        values["base_model_relation"] = "adapter" if adapter else "finetune"
    return values


def _about(facts: Facts, choice: Choice, *, adapter: bool, merged: bool) -> Iterator[str]:
    student, teachers = facts.run.config.student, facts.run.config.teachers
    names = " and ".join(escaped(one.model) for one in teachers.values())
    yield (
        f"{escaped(student.model)} after {_rounds(choice.number)} of on-policy distillation from "
        f"{names}, made by opd: the student samples, its teacher scores exactly these tokens, and "
        "the student learns from the scores."
    )
    if adapter:
        yield (
            "The folder holds an adapter alone: it needs the model that adapter_config.json names, "
            "and the library PEFT."
        )
    if merged:
        yield f"It was trained as an adapter, which is merged into {escaped(student.model)} here."
    yield (
        "What its student and its teachers are licensed under holds for it too; no record says "
        "what that is."
    )


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _teachers(facts: Facts) -> str:
    rows = []
    for name, one in facts.run.config.teachers.items():
        scorers = ", ".join(facts.scorers(name)) or ABSENT
        rows.append([name, one.model, one.revision or "a folder", scorers])
    return table(["name", "model", "revision", "scorer in the cache"], rows)


def _data(facts: Facts, choice: Choice) -> Iterator[str]:
    prompts, config = facts.records.prompts, facts.run.config
    if prompts is None:
        yield "The prompts are not pinned yet."
    else:
        yield (
            f"{prompts.rows:,} prompts of {escaped(prompts.source)}, sha256 "
            f"`{prompts.source_sha256}`, fingerprint `{prompts.fingerprint}`."
        )
    if config.prompts.eval is not None:
        yield f"Held-out prompts are those of {escaped(config.prompts.eval)}."
    trained = [one for one in facts.before(choice.number) if one.train is not None]
    if trained:
        rows = sum(one.train.rows for one in trained if one.train)
        tokens = sum(one.train.tokens for one in trained if one.train)
        yield (
            f"It was trained on {rows:,} sequences, {tokens:,} tokens, that students of "
            f"{_rounds(len(trained))} sampled."
        )


def _settings(facts: Facts, prefixes: tuple[str, ...]) -> str:
    kept = {n: v for n, v in facts.identity.items() if n.startswith(prefixes) and v is not None}
    return table(["setting", "value"], [[name, str(value)] for name, value in kept.items()])


def _figures(facts: Facts, choice: Choice) -> Iterator[str]:
    rows = list(_accuracies(facts, choice))
    if rows:
        yield "Accuracy on held-out prompts, with 95 % intervals (Wilson):"
        yield table(["who", "accuracy", "from", "to", "responses"], rows)
    else:
        yield f"Accuracy: {ABSENT}. An [eval] section grades each round."
    own, before = facts.gap(choice.number), facts.gap(choice.number - 1)
    yield f"Reverse KL to its teachers, on its own samples: {_nats(own)}."
    if choice.number:
        yield f"That of the student before, in its last round: {_nats(before)}."
    if facts.gap(0) is not None and choice.number > 1:
        yield f"That of the student as it came: {_nats(facts.gap(0))}."


def _accuracies(facts: Facts, choice: Choice) -> Iterator[list[str]]:
    section = facts.run.config.eval
    samples = 1 if section is None else section.samples_per_prompt
    graded: dict[str, EvalManifest | None] = {
        "this checkpoint": evaluation_of(facts.records, choice.number)
    }
    if choice.number:
        graded["the student as it came"] = facts.records.start
    graded |= {f"teacher {name}": one for name, one in facts.records.teachers.items()}
    for who, one in graded.items():
        if one is not None:
            found = accuracy_interval(one, samples=samples)
            yield [who, *(written(value, "share") for value in found), f"{one.rows:,}"]


def _nats(gap: Gap | None) -> str:
    if gap is None:
        return ABSENT
    error = "" if gap.error is None else f", standard error {written(gap.error, 'nats')}"
    return f"{written(gap.value, 'nats')} nats per token{error}"


def _cost(facts: Facts, choice: Choice) -> Iterator[str]:
    frame = round_frame(facts.records)
    yield f"Of the {_rounds(choice.number)} that it has learned from:"
    words = cost(frame.filter(frame["round"] < choice.number))
    yield "\n".join(f"- {sentence}" for sentence in words)


def _made(facts: Facts, choice: Choice, *, merged: bool) -> Iterator[str]:
    yield fenced(
        "opd run -c run.toml\n"
        f"opd export -c run.toml --checkpoint {choice.number} --out FOLDER"
        + (" --merge" if merged else ""),
        "sh",
    )
    marks: Mapping[str, str] = {
        "policy version": choice.manifest.policy_version,
        "run": facts.record.fingerprint,
        **facts.record.software,
    }
    yield table(["what", "version or fingerprint"], [[n, v] for n, v in marks.items()])
    yield "Every setting that defines the run's results:"
    yield as_json(facts.identity)
