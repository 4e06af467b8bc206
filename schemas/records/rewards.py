"""Records of the rewards of a round."""

from typing import Any

from schemas.fingerprint import fingerprint
from schemas.forms import Count, Digest, FileName, Mark, Real, Words
from schemas.keys import REWARDS, grade_stage, manifest_key, stage_folder
from schemas.records.record import Versioned
from schemas.records.shards import UnitShard
from schemas.records.units import flaw_of_units


class RewardManifest(Versioned):
    """The rewards of a round's rollout by one grader, and how many rows have none."""

    LATER = frozenset({"teacher"})
    run: FileName
    round: Count
    identity: dict[str, Any]
    """The grader in words: its name and settings, and the digest or version of its code."""
    grader: Digest
    """Fingerprint of the identity."""
    rollout_fingerprint: Mark
    fingerprint: Mark
    units: tuple[UnitShard, ...]
    rows: Count
    tokens: Count
    rewarded: Count
    """Rows that have a reward."""
    mean: Real | None
    """Of the rewards."""
    faults: dict[Words, Count]
    """Rows that have none, by kind of fault."""
    groups: Count
    """Prompts with a reward."""
    groups_without_spread: Count
    """Those whose rewards are all equal."""
    teacher: FileName | None = None
    """Whose samples are graded; None for the student's."""

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: its units, its grader or its counts."""
        found = fingerprint(self.identity)
        if found != self.grader:
            return f"its grader has the fingerprint {found}"
        if self.rewarded + sum(self.faults.values()) != self.rows:
            return f"{self.rewarded} rows have a reward and {self.faults} none, of {self.rows}"
        if not self.groups_without_spread <= self.groups <= self.rewarded:
            return f"{self.groups} prompts have a reward, {self.groups_without_spread} of one kind"
        if (self.mean is None) != (self.rewarded == 0):
            return f"the mean of {self.rewarded} rewards is {self.mean}"
        return flaw_of_units(
            self.units, folder=REWARDS, rows=self.rows, tokens=self.tokens, distinct=False
        )

    def misplaced(self, key: str) -> str | None:
        """Return which round it is of, where its key is another one's."""
        home = manifest_key(stage_folder(self.run, self.round, grade_stage(self.teacher)))
        return None if key == home else f"the rewards of round {self.round} of run {self.run}"
