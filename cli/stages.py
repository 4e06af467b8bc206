"""The stage commands: rollout, grade, score, train, eval and run."""

from functools import partial
from typing import Annotated

import typer

from cli.look.stagereport import report_stages, tracking
from cli.options import (
    ConfigOption,
    JsonOption,
    RoundOption,
    SetOption,
    WorkerOption,
    load_run,
    parse_worker,
    round_option,
)
from cli.output import make_progress
from cli.training.launched import launch, train_one
from cli.training.objectivecheck import show_objective_check
from pipeline.learner.launch import needs_launch
from pipeline.runs.run import Run
from schemas.config.run import MAX_ROUNDS


def rollout(
    config: ConfigOption,
    round_index: RoundOption,
    overrides: SetOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let this teacher sample in the student's place, to the prompts that it teaches: "
            "for loss.gate, or to train on.",
        ),
    ] = None,
    worker: WorkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the student sample responses to a round's prompts."""
    from pipeline.stages.rollout import run_rollout

    run, mine = load_run(config, overrides), parse_worker(worker)
    progress = make_progress(as_json=as_json)
    report_stages(
        run,
        as_json,
        lambda: [run_rollout(run, round_index, worker=mine, progress=progress, teacher=teacher)],
    )


def grade(
    config: ConfigOption,
    round_index: RoundOption,
    overrides: SetOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Grade the samples of this teacher, not the student's."),
    ] = None,
    worker: WorkerOption = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="First forget rewards of another grader or another version of it, and units on "
            "whose rows the grader failed. Run it alone, without other workers.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give the responses of a round their rewards.

    A row on which the grader fails has no reward, and the round goes on; the failures are counted.
    Where loss.gate asks for teachers' samples, they are graded too, unless --teacher names one.
    """
    from pipeline.stages.grade import run_grade

    run, mine = load_run(config, overrides), parse_worker(worker)
    progress = make_progress(as_json=as_json)
    whose = [None, *run.config.answering] if teacher is None else [teacher]
    report_stages(
        run,
        as_json,
        lambda: (
            run_grade(run, round_index, worker=mine, progress=progress, again=again, teacher=name)
            for name in whose
        ),
    )


def score(
    config: ConfigOption,
    round_index: RoundOption,
    overrides: SetOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Score with this teacher only; default all teachers."),
    ] = None,
    worker: WorkerOption = None,
    only_invalid: Annotated[
        bool,
        typer.Option(
            "--only-invalid",
            help="Verify the stored scores, and re-score rows that are damaged or of another "
            "scorer. Run it alone, without other workers.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let the teachers score exactly the tokens that the student sampled.

    Sequences whose scores are in the cache are not scored again.
    """
    from pipeline.stages.score import run_score

    run, mine = load_run(config, overrides), parse_worker(worker)
    progress = make_progress(as_json=as_json)
    report_stages(
        run,
        as_json,
        lambda: run_score(
            run,
            round_index,
            teacher=teacher,
            worker=mine,
            progress=progress,
            only_invalid=only_invalid,
        ),
    )


def train(
    config: ConfigOption,
    round_index: Annotated[
        int | None,
        round_option(
            "Number of the round, from 0. --objective-check can do without: it takes the "
            "newest scored one."
        ),
    ] = None,
    objective_check: Annotated[
        bool,
        typer.Option(
            "--objective-check",
            help="Train nothing: check the gradient of the objective on the round's first rows, "
            "and tell bias and noise of every form that they allow.",
        ),
    ] = False,
    with_teacher: Annotated[
        bool,
        typer.Option(
            "--with-teacher",
            help="With --objective-check: load the teacher too, and measure every form against the "
            "gradient over all of its ids.",
        ),
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the next checkpoint on a round's cached scores, without a teacher.

    A killed call resumes from the last saved state. For several GPUs set train.num_processes, or
    use torch's launcher:
    torchrun --no-python --nproc-per-node 8 opd train -c run.toml --round 0
    """
    if objective_check:
        run = load_run(config, overrides)
        show_objective_check(run, round_index, with_teacher=with_teacher, as_json=as_json)
        return
    if with_teacher:
        raise typer.BadParameter("--with-teacher is for --objective-check")
    if round_index is None:
        raise typer.BadParameter("give --round N")
    run = load_run(config, overrides)
    if needs_launch(run):
        launch(run, config, round_index, overrides or [], as_json=as_json)
        return
    from pipeline.stages.train import run_train

    progress = make_progress(as_json=as_json)
    report_stages(
        run,
        as_json,
        lambda: [run_train(run, round_index, progress=progress)],
        tracked=tracking(config, overrides),
    )


def evaluate(
    config: ConfigOption,
    round_index: Annotated[
        int | None,
        round_option("Grade the student that this round trained."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Grade the initial student and the teachers.")
    ] = False,
    overrides: SetOption = None,
    worker: WorkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample on held-out prompts and grade the responses."""
    from pipeline.stages.evaluate import run_eval
    from pipeline.stages.subjects import baseline_subjects, round_subject

    if (round_index is None) != baseline:
        raise typer.BadParameter("give either --round N or --baseline")
    run, mine = load_run(config, overrides), parse_worker(worker)
    subjects = baseline_subjects(run) if round_index is None else [round_subject(run, round_index)]
    progress = make_progress(as_json=as_json)
    report_stages(
        run,
        as_json,
        lambda: (run_eval(run, s, worker=mine, progress=progress) for s in subjects),
        tracked=tracking(config, overrides),
    )


def run_all(
    config: ConfigOption,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_ROUNDS, help="Rounds to reach in total; default run.rounds."
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages of all rounds in order; resume wherever the run stands.

    Safe to stop and to run again at any time: what is done costs nothing.
    """
    run = load_run(config, overrides)
    drive(run, config, rounds or run.config.run.rounds, overrides or [], as_json=as_json)


def drive(run: Run, config: str, rounds: int, overrides: list[str], *, as_json: bool) -> None:
    """Run rounds up to a number and report each stage as it ends."""
    from pipeline.stages.rounds import run_rounds

    progress = make_progress(as_json=as_json)
    train_round = partial(
        train_one, run, config, overrides=overrides, progress=progress, as_json=as_json
    )
    results = run_rounds(run, rounds, train=train_round, progress=progress)
    tracked = tracking(config, overrides)
    report_stages(run, as_json, lambda: results, whole_run=True, tracked=tracked)
