"""What the learner of a round is built from, and what it aims at in it."""

from typing import Any

from pipeline.learner.inputs import TrainInputs
from pipeline.learner.objective.ownloss import with_function
from pipeline.learner.settings import LearnerSettings
from pipeline.runs.curriculum.rounds import round_objective
from pipeline.runs.run import Run
from pipeline.store.records import read_record
from schemas.config.loss import LossConfig
from schemas.keys import scorer_key
from schemas.records.scores import ScorerIdentity
from schemas.scoresignal import Signal


def round_settings(run: Run, inputs: TrainInputs) -> LearnerSettings:
    """Return the settings of a round's learner, with the objective of that round.

    Raises:
        ConfigError: a loss of the user's own cannot be used.
    """
    config, loss = run.config, round_objective(run, inputs.round_index)
    return LearnerSettings(
        config.train,
        with_function(loss, inputs.own_loss),
        by_row=not config.rollout.is_whole and not config.is_supervised,
    )


def what_it_reads(run: Run, inputs: TrainInputs) -> dict[str, Any]:
    """Return what a round's objective reads of scores beside the top-k, as `RoundData` takes it."""
    loss = round_objective(run, inputs.round_index)
    if loss.temperature == 1.0:
        return {"samples": loss.samples}
    places = {name: _place(run, m.scorer, loss) for name, m in inputs.scores.items()}
    return {
        "samples": loss.samples,
        "normalisers": {name: place for name, place in places.items() if place is not None},
    }


def _place(run: Run, scorer: str, loss: LossConfig) -> int | None:
    """Return which of a scorer's log-normalisers is of the objective's temperature, if any is."""
    identity = read_record(run.storage, scorer_key(scorer), ScorerIdentity)
    temperatures = Signal.of(identity.signal).temperatures
    return temperatures.index(loss.temperature) if loss.temperature in temperatures else None
