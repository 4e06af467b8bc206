"""What the learner of a round is built from, and what it aims at in it."""

from pipeline.learner.inputs import TrainInputs
from pipeline.learner.objective.ownloss import with_function
from pipeline.learner.settings import LearnerSettings
from pipeline.runs.run import Run


def round_settings(run: Run, inputs: TrainInputs) -> LearnerSettings:
    """Return the settings of a round's learner, with the objective of that round.

    Raises:
        ConfigError: a loss of the user's own cannot be used.
    """
    return LearnerSettings(run.config.train, with_function(run.config.objective, inputs.own_loss))
