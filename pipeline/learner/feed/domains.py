"""The domains of a round's prompts, and weights that make each of them pull alike.

A domain whose teacher and student differ most would have most of each gradient. How far they differ
is known of the round before it is trained: by the log ratios of the sampled tokens.
Shapes: R rows of a round, D domains; B rows and T tokens of a unit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.learner.feed.data import RoundData
from pipeline.learner.ranks import from_main
from pipeline.learner.sequences import Batch
from schemas.columns import Floats
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError
from schemas.foreign import shown
from schemas.strictjson import parse_json

LEAST, MOST = 0.25, 4.0
"""Bounds of a domain's weight."""

TOLD = 8
"""Domains whose weights are told."""

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Domains:
    """The domains of a round."""

    names: tuple[str, ...]
    """In alphabetical order; empty for prompts that name none."""
    weight_D: Reals
    factor_R: Floats
    """Weight of each row's domain."""

    def words(self) -> str:
        """Return the weights for people."""
        told = [
            f"{shown(name) if name else 'without one'} {weight:.2f}"
            for name, weight in zip(self.names[:TOLD], self.weight_D[:TOLD], strict=True)
        ]
        more = [f"and {len(self.names) - TOLD} more"] if len(self.names) > TOLD else []
        return f"weights of domains: {', '.join([*told, *more])}"


def weigh_domains(data: RoundData, loss: LossConfig) -> list[str]:
    """Have rows distil by the weights of their domains, where asked; return what to tell of it.

    Every process must call.

    Raises:
        ConfigError: no prompt names its domain.
        DataError: a shard is missing, corrupt or misshapen.
    """
    if loss.weights.domain is None:
        return []
    domains = from_main(lambda: read_domains(data, loss))
    data.weigh(domains.factor_R)
    return [domains.words()]


def read_domains(data: RoundData, loss: LossConfig) -> Domains:
    """Return the domains of a round's rows, from one reading of all its shards.

    Raises:
        ConfigError: no prompt names its domain.
        DataError: a shard is missing, corrupt or misshapen.
    """
    field, floor = str(loss.weights.domain), loss.teacher_logprob_floor
    found, squares, counts = list[str](), [], []
    for metadata, batch in data.each_unit("metadata"):
        found += domain_names(metadata, field)
        square_B, count_B = _squares(batch, floor)
        squares.append(square_B)
        counts.append(count_B)
    if not any(found):
        raise ConfigError(
            f"loss.weights.domain = {shown(field)}: no prompt of the round has such a column. Name "
            "one of the free columns of prompts.train, or leave the key out"
        )
    return balanced(found, np.concatenate(squares), np.concatenate(counts))


def balanced(domain_R: Sequence[str], square_R: Reals, tokens_R: Reals) -> Domains:
    """Return domains with the weights σ/σ_d, σ_d the root of the mean square of a domain's tokens.

    Args:
        domain_R: name of each row's domain.
        square_R: sum of the squared log ratios of its trained tokens.
        tokens_R: their number.
    """
    names, place_R = np.unique(np.array(domain_R, dtype=object), return_inverse=True)
    square_D, tokens_D = (np.bincount(place_R, x, len(names)) for x in (square_R, tokens_R))
    scale_D = np.sqrt(square_D / np.maximum(tokens_D, 1.0))
    scale = np.sqrt(square_R.sum() / max(tokens_R.sum(), 1.0))
    weight_D = np.ones(len(names))
    np.divide(scale, scale_D, out=weight_D, where=scale_D > 0)
    weight_D = np.where((scale_D == 0) & (tokens_D > 0) & (scale > 0), MOST, weight_D)
    weight_D = np.clip(weight_D, LEAST, MOST)
    return Domains(tuple(names.tolist()), weight_D, weight_D[place_R].astype(np.float32))


def domain_names(metadata: pa.ChunkedArray, field: str) -> list[str]:
    """Return what a column of a prompt's own says in each row; empty where it says nothing.

    Args:
        metadata: JSON of the free columns.
        field: which of them.
    """
    column = metadata.combine_chunks().dictionary_encode()
    known = [_name(json_text, field) for json_text in column.dictionary.to_pylist()]
    places = column.indices.to_pylist()
    return ["" if place is None else known[place] for place in places]


def _name(json_text: str, field: str) -> str:
    value = parse_json(json_text.encode()).get(field)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _squares(batch: Batch, floor: float) -> tuple[Reals, Reals]:
    """Return of each row the sum of squared log ratios of its trained tokens, and their number."""
    trained_T = (batch.weight_T > 0).astype(np.float64)
    ratio_T = np.maximum(batch.teacher.token_logprob_T, floor) - batch.rollout_logprob_T
    square_T = np.where(trained_T > 0, ratio_T.astype(np.float64) ** 2, 0.0)
    starts_B = np.cumsum(batch.response_tokens_B) - batch.response_tokens_B
    return np.add.reduceat(square_T, starts_B), np.add.reduceat(trained_T, starts_B)
