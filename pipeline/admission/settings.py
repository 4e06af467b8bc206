"""Looks at what a run needs besides its models: prompts, grader, sampling, engines, devices.

Must not: write anything.
"""

from pipeline.admission.findings import Finding
from pipeline.admission.models import Candidate
from pipeline.engines.opening import require_engine
from pipeline.learner.objective.ownloss import with_function
from pipeline.models.loading import pick_device
from pipeline.models.own.effective import end_token_ids
from pipeline.models.stopstrings import reading_backend
from pipeline.models.tokenizer import vocabulary_size
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import require_prompt_file
from pipeline.rewards.graders import Response, check_references, try_grader
from pipeline.rewards.libraries.judging import open_evaluator
from pipeline.rewards.location import find_grader
from pipeline.runs.ownfile import own_loss
from pipeline.runs.run import Run
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError

TRIED = 16
"""References that a grader of a library is tried on before a run begins."""


def engine_sections(run: Run) -> dict[str, EngineSection]:
    """Return the tables of the stages that run a model, by the names of the stages."""
    config = run.config
    stages = {"rollout": config.rollout, "score": config.score, "eval": config.eval}
    return {stage: section for stage, section in stages.items() if section is not None}


def look_at_engines(run: Run, stages: tuple[str, ...] = ("rollout", "score", "eval")) -> Finding:
    """Return that this machine can start the engines of some stages.

    Raises:
        ConfigError: one is not installed, or has no such device, or no key for its servers.
    """
    used = {name: one for name, one in engine_sections(run).items() if name in stages}
    for section in used.values():
        require_engine(section.engine, section.server.urls)
        if section.engine == "hf":
            pick_device(section.device)
        elif section.engine == "server" and section.server.urls:
            _check_key(section)
        _check_temperature(section)
    named = {stage: section.engine for stage, section in used.items()}
    words = ", ".join(f"{stage} {engine}" for stage, engine in named.items())
    return Finding("engines", "ok", f"{words}: installed", named)


def look_at_sampling(one: Candidate) -> Finding:
    """Return that a response can end, and that the student has the ids that are asked for.

    Raises:
        ConfigError: not so.
    """
    section, tokenizer, size = one.run.config.rollout, one.tokenizer, int(one.settings.vocab_size)
    given = section.stop_token_ids
    ends = end_token_ids(one.student, tokenizer) if given is None else given
    beyond = [index for index in ends if index >= size]
    if given is not None and beyond:
        raise ConfigError(
            f"rollout.stop_token_ids has {beyond[0]}, but the student's vocabulary has {size} ids: "
            f"no response would end with it. Give ids below {size}, or remove the key"
        )
    if section.stop_strings:
        reading_backend(tokenizer)
    known = vocabulary_size(tokenizer)
    for name in ("candidates", "sample"):
        if getattr(section, name) > known:
            raise ConfigError(
                f"rollout.{name} = {getattr(section, name)}, but the vocabulary has {known} ids: "
                "lower it"
            )
    words = f"responses end with {', '.join(map(str, ends)) or 'no id'}"
    return Finding("sampling", "ok", words, {"stop_token_ids": list(ends)})


def look_at_learner(run: Run) -> Finding:
    """Return that this machine has the device that the learner asks for.

    Raises:
        ConfigError: it has not.
    """
    device = pick_device(run.config.train.device)
    return Finding("learner", "ok", f"device {device}", {"device": device})


def look_at_prompts(one: Candidate, *, read: bool) -> Finding:
    """Return that every prompt can be used; only that the files are there, without a student.

    Raises:
        ConfigError: a file is missing, or a prompt cannot be used.
    """
    run, found, skipped = one.run, [], 0
    for key in ("train", "eval"):
        location = getattr(run.config.prompts, key)
        if location is None:
            continue
        file = require_prompt_file(run.place, location, key=f"prompts.{key}", config=run.config)
        words = file.location
        if read:
            tally = Tally()
            tables = prompt_tables(file, run.config, one.tokenizer, tally=tally)
            rows = sum(table.num_rows for table in tables)
            skipped += tally.skipped.total()
            words += f": {rows} prompts"
            words += f", left out {tally.reasons}" if tally.skipped else ""
        found.append(words)
    return Finding("prompts", "warning" if skipped else "ok", "; ".join(found))


def look_at_grader(run: Run) -> Finding:
    """Return that the graders of held-out prompts and of rewards can be loaded.

    Raises:
        ConfigError: one cannot.
    """
    named = {"[eval]": run.config.eval, "[reward]": run.config.reward}
    graders = [find_grader(section, run.place) for section in named.values() if section is not None]
    for grader in graders:
        try_grader(grader)
    words = ", ".join(dict.fromkeys(grader.name for grader in graders))
    missing = " or ".join(table for table, section in named.items() if section is None)
    return Finding("grader", "ok", f"{words}: can be used" if words else f"none: no {missing}")


def look_at_loss(run: Run) -> Finding:
    """Return that the objective can be used: a loss of one's own is tried on random categories.

    Raises:
        ConfigError: it cannot be loaded, or its gradient is not that of its value.
    """
    loss = run.config.loss
    own = own_loss(loss, run.place)
    if own is None:
        return Finding("loss", "ok", loss.kind)
    with_function(loss, own)
    return Finding("loss", "ok", f"{loss.kind}: its gradient is that of its value")


def look_at_references(one: Candidate) -> Finding:
    """Return that the held-out prompts have the references that the grader compares with.

    Raises:
        ConfigError: one has none, or one that the grader cannot read.
    """
    run, section, location = one.run, one.run.config.eval, one.run.config.prompts.eval
    if section is None or location is None:
        return Finding("references", "ok", "none are needed: there is no [eval]")
    file = require_prompt_file(run.place, location, key="prompts.eval", config=run.config)
    left, seen, grader = section.max_prompts, 0, find_grader(section, run.place)
    for table in prompt_tables(file, run.config, one.tokenizer, tally=Tally()):
        columns = [table.column(name).to_pylist() for name in ("prompt_id", "reference")]
        rows = [Response(prompt, "", answer, None) for prompt, answer in zip(*columns, strict=True)]
        rows = rows if left is None else rows[: max(0, left - seen)]
        check_references(section.choice, rows)
        if grader.of_library and not seen:
            with open_evaluator(grader, timeout_s=section.grader_timeout_s) as grade:
                grade(rows[:TRIED])
        seen += len(rows)
    return Finding("references", "ok", f"{section.reward} can use those of {seen} prompts")


def _check_key(section: EngineSection) -> None:
    from pipeline.engines.server.client import api_key

    api_key(section.server)


def _check_temperature(section: EngineSection) -> None:
    temperature: float | None = getattr(section, "temperature", None)
    if section.engine != "hf" and temperature is not None:
        from pipeline.engines.vllm.requests import check_temperature

        check_temperature(temperature)
