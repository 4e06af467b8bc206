"""How much each row of a round distils: by its own reward, its prompt's, and its teacher's answers.

Promises: a row's weight depends on what is known of it, not on its unit or its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.learner.feed.advantages import Advantages
from pipeline.objectives.advantages import pass_rate_weights, pass_rates, reward_gate
from pipeline.shards.rewards import read_rewards
from pipeline.shards.rollouts import read_rollout
from pipeline.store.storage import Storage
from schemas.columns import Floats
from schemas.config.rewards.gates import LossGate
from schemas.errors import DataError
from schemas.keys import REWARDS
from schemas.records.shards import UnitShard

GATE_COLUMNS = ("prompt_id", "teacher")
"""Columns of a rollout that say whose answers to which prompts count."""


@dataclass(frozen=True)
class TeacherAnswers:
    """Graded answers of a teacher, in the store."""

    fingerprint: str
    units: tuple[UnitShard, ...]
    """Shards of rewards, or of graded samples."""


@dataclass(frozen=True)
class GateInputs:
    """What a round's gates are opened by, beside the rewards of its rows."""

    section: LossGate
    answers: Mapping[str, TeacherAnswers]
    """By teacher; empty where no teacher's answers are asked for."""


class Gates:
    """The weight of the distillation of each row of a round."""

    def __init__(self, storage: Storage, inputs: GateInputs, rewards: Advantages | None) -> None:
        """Read nothing yet.

        Args:
            storage: the store.
            inputs: the gates, and what opens them.
            rewards: those of the rows, where they are graded.
        """
        self._storage, self._inputs, self._rewards = storage, inputs, rewards

    def of(self, first: int, rows: pa.Table) -> Floats:
        """Return the weights of a unit's rows.

        Args:
            first: number of its first row in the round.
            rows: the unit, with `GATE_COLUMNS`.

        Raises:
            DataError: a shard of answers is missing, corrupt or misshapen.
        """
        weight_B = np.ones(rows.num_rows, np.float32)
        if self._inputs.section.of_student:
            weight_B *= self._own_R[first : first + rows.num_rows]
        if self._inputs.section.teacher != "any":
            weight_B *= self._by_teacher(rows)
        return weight_B

    @cached_property
    def _own_R(self) -> Floats:
        """Return the weight of each row of the round by rewards of the student's responses."""
        gate, rewards = self._inputs.section, self._rewards
        if rewards is None:
            raise DataError("loss.gate needs the rewards of the round, there are none")
        weight_R = np.ones(len(rewards.reward_R), np.float32)
        if gate.student != "any":
            weight_R *= reward_gate(
                rewards.reward_R, right=gate.right, keep=gate.student, unknown=gate.unknown
            )
        if gate.pass_rate != "any":
            rate_R = pass_rates(rewards.reward_R, rewards.group_R, right=gate.right)
            weight_R *= pass_rate_weights(rate_R, kind=gate.pass_rate, unknown=gate.unknown)
        return weight_R

    def _by_teacher(self, rows: pa.Table) -> Floats:
        """Return the weight of each row by the answers of its teacher to its prompt."""
        gate, rate_B = self._inputs.section, np.full(rows.num_rows, np.nan, np.float32)
        for name, (prompts, rate_P) in self._answers.items():
            place_B = pc.index_in(rows.column("prompt_id"), value_set=prompts)
            mine_B = pc.and_(pc.equal(rows.column("teacher"), name), pc.is_valid(place_B))
            found = np.flatnonzero(mine_B.to_numpy())
            rate_B[found] = rate_P[place_B.take(pa.array(found)).to_numpy()]
        return reward_gate(rate_B, right=gate.teacher_rate, keep="right", unknown=gate.unknown)

    @cached_property
    def _answers(self) -> dict[str, tuple[pa.Array, Floats]]:
        """Return the prompts that each teacher has answered, and its share of right answers."""
        return {name: self._rates(answers) for name, answers in self._inputs.answers.items()}

    def _rates(self, answers: TeacherAnswers) -> tuple[pa.Array, Floats]:
        table = pa.concat_tables([self._rewarded(unit) for unit in answers.units])
        names = table.column("prompt_id").combine_chunks().dictionary_encode()
        place_R = names.indices.to_numpy().astype(np.int64)
        reward_R = table.column("reward").to_numpy()
        rate_R = pass_rates(reward_R, place_R, right=self._inputs.section.right)
        rate_P = np.full(len(names.dictionary), np.nan, np.float32)
        rate_P[place_R] = rate_R
        return names.dictionary, rate_P

    def _rewarded(self, unit: UnitShard) -> pa.Table:
        columns = ("prompt_id", "reward")
        if unit.shard.is_in(REWARDS):
            return read_rewards(self._storage, unit.shard).select(columns)
        return read_rollout(self._storage, unit.shard, columns=columns).select(columns)
