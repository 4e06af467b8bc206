"""Rounds in order on this machine, from wherever the run stands."""

from collections.abc import Callable, Iterator

from pipeline.engines.kept import keeping
from pipeline.engines.vllm.slot import EngineSlot
from pipeline.runs.gate import judge
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult
from pipeline.runs.run import Run, check_run
from pipeline.runs.tasks import next_round, wants_eval
from pipeline.runs.units import Worker

TrainCall = Callable[[int], StageResult]


def run_rounds(
    run: Run, rounds: int, *, train: TrainCall, progress: Progress
) -> Iterator[StageResult]:
    """Run all stages of all unfinished rounds; yield the result of each stage as it ends.

    Args:
        run: the run.
        rounds: rounds to reach in total.
        train: trains a round, in this process or in several.
        progress: told of each unit.

    Raises:
        IdentityError: the run began with other settings, also where nothing is left to do.
        RegressionError: a round made the student worse than `[gate]` allows.
    """
    check_run(run)
    with keeping(_keeps_models(run)), EngineSlot() as slot:
        yield from _rounds(run, rounds, train=train, progress=progress, slot=slot)


def _rounds(
    run: Run, rounds: int, *, train: TrainCall, progress: Progress, slot: EngineSlot
) -> Iterator[StageResult]:
    from pipeline.admission.gate import begin, try_teachers
    from pipeline.admission.settings import look_at_grader
    from pipeline.stages.evaluate import run_eval
    from pipeline.stages.subjects import baseline_subjects, round_subject

    alone, first = Worker(), next_round(run, rounds)
    if first < rounds:
        begin(run, stage=None, note=progress.note)
    if run.config.eval is not None:
        for subject in baseline_subjects(run):
            yield run_eval(run, subject, worker=alone, progress=progress, slot=slot)
    if first and _is_over(run, first - 1, progress):
        return
    if first < rounds:  # before hours of work, not after
        look_at_grader(run)
        try_teachers(run, note=progress.note)
    for index in range(first, rounds):
        yield from _gathered(run, index, progress=progress, slot=slot)
        yield train(index)
        if wants_eval(run, index, rounds):
            subject = round_subject(run, index)
            yield run_eval(run, subject, worker=alone, progress=progress, slot=slot)
        if _is_over(run, index, progress):
            return


def _gathered(
    run: Run, index: int, *, progress: Progress, slot: EngineSlot
) -> Iterator[StageResult]:
    """Run the stages that give what a round trains on."""
    from pipeline.stages.grade import run_grade
    from pipeline.stages.rollout import run_rollout
    from pipeline.stages.score import run_score

    alone = Worker()
    if run.config.is_supervised:
        teacher = run.config.default_teacher
        yield run_rollout(run, index, worker=alone, progress=progress, teacher=teacher)
        return
    yield run_rollout(run, index, worker=alone, progress=progress, slot=slot)
    if run.config.reward is not None:
        yield run_grade(run, index, worker=alone, progress=progress)
    for name in run.config.answering:
        yield run_rollout(run, index, worker=alone, progress=progress, teacher=name)
        yield run_grade(run, index, worker=alone, progress=progress, teacher=name)
    yield from run_score(run, index, teacher=None, worker=alone, progress=progress)


def _keeps_models(run: Run) -> bool:
    """Return whether models stay loaded: as configured, else where no GPU is short of memory."""
    config = run.config
    if config.run.keep_models is not None:
        return config.run.keep_models
    from pipeline.models.loading import pick_device

    return config.score.engine == "hf" and {
        pick_device(device) for device in (config.score.device, config.train.device)
    } == {"cpu"}


def _is_over(run: Run, round_index: int, progress: Progress) -> bool:
    """Return whether `[gate]` ends the run after a round."""
    if run.config.gate is None:
        return False
    verdict = judge(run, round_index)
    if verdict.decision == "stop":
        progress.note(f"stopped: {verdict.reason}")
    return verdict.decision == "stop"
