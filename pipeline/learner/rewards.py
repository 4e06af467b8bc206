"""The rewards that a round trains on: found, and held against configuration and rollout."""

from pipeline.learner.feed.advantages import RewardInputs
from pipeline.runs.run import Run
from pipeline.store.records import check_fingerprint
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.keys import GRADE
from schemas.records.runs import RolloutManifest


def find_rewards(run: Run, rollout: RolloutManifest) -> RewardInputs | None:
    """Return the rewards of a round; None where the configuration has no [reward].

    Raises:
        ConfigError: the round is not graded.
        IdentityError: it was graded by another grader, or another rollout was.
        DataError: not every row of every unit was.
    """
    section = run.config.reward
    if section is None:
        return None
    manifest, key = run.rewards(rollout.round), run.manifest_key(rollout.round, GRADE)
    if manifest is None:
        raise ConfigError(
            f"round {rollout.round} has no rewards: run `opd grade --round {rollout.round}` first, "
            "or take [reward] out of the configuration"
        )
    check_fingerprint(run.storage, key, manifest.rollout_fingerprint, rollout.fingerprint)
    found = {name: manifest.identity.get(name) for name in section.words()}
    if found != section.words():
        raise IdentityError(
            f"{run.storage.url(key)} has rewards by {found}, the configuration says "
            f"{section.words()}: run `opd grade --round {rollout.round} --again`, or undo that"
        )
    sizes = [[unit.shard.rows for unit in units] for units in (manifest.units, rollout.units)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{run.storage.url(key)} does not grade the rows of its rollout, unit by unit. Delete "
            f"it with the commits beside it, and run `opd grade --round {rollout.round}` again"
        )
    return RewardInputs(manifest, section.advantage)
