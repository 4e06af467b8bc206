"""What a round does, as a pure function of configuration, seed and round.

Owns which prompts a round draws, how work is cut into units and which seed each sample has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.keys import unit_name
from schemas.randomness import derived_seed

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Unit:
    """A piece of work with one shard and one commit: some prompts, all their samples."""

    name: str
    rows: Rows
    """Row numbers in the prompt table, one per sequence."""
    epochs: Rows
    """Pass over the prompt table in which the prompt was drawn, one per sequence."""
    sample_indices: Rows
    """Number of the sample of its prompt, one per sequence."""


def draw_prompts(rows: int, *, per_round: int, round_index: int, seed: int) -> tuple[Rows, Rows]:
    """Return the prompt rows of a round and the epoch of each, int64 [per_round].

    The table is walked through in a fresh random order each epoch; a round goes on where the last
    one stopped, so that prompts repeat only from epoch to epoch.
    """
    position = np.arange(round_index * per_round, (round_index + 1) * per_round, dtype=np.int64)
    epochs, offsets = np.divmod(position, rows)
    drawn = np.empty_like(position)
    for epoch in np.unique(epochs).tolist():
        order = np.random.default_rng(derived_seed("prompts", seed, epoch)).permutation(rows)
        drawn[epochs == epoch] = order[offsets[epochs == epoch]]
    return drawn, epochs


def cut_units(
    prompt_rows: Rows, epochs: Rows, *, samples_per_prompt: int, prompts_per_unit: int
) -> list[Unit]:
    """Return the units of a stage over some prompts; a prompt's samples stay together."""
    units: list[Unit] = []
    for start in range(0, len(prompt_rows), prompts_per_unit):
        part = slice(start, start + prompts_per_unit)
        unit = Unit(
            name=unit_name(len(units)),
            rows=np.repeat(prompt_rows[part], samples_per_prompt),
            epochs=np.repeat(epochs[part], samples_per_prompt),
            sample_indices=np.tile(np.arange(samples_per_prompt), len(prompt_rows[part])),
        )
        units.append(unit)
    return units


def sample_seeds(
    unit: Unit, prompt_ids: Sequence[str], *, seed: int, round_index: int
) -> list[int]:
    """Return one seed per sequence of a unit: rounds, prompts and samples differ, replays agree.

    Runs of one seed and student draw the same first round, so that its scores are paid for once.
    """
    rows = zip(prompt_ids, unit.epochs.tolist(), unit.sample_indices.tolist(), strict=True)
    return [derived_seed("sample", seed, round_index, *row) for row in rows]
