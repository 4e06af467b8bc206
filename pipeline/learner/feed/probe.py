"""The rows of a round that an exported checkpoint is compared on. Pure."""

import numpy as np

from pipeline.learner.sequences import Rows

PROBE_TOKENS = 256
"""Tokens of the sequences that an exported checkpoint is compared on; one sequence at least."""

PROBE_FROM_ROWS = 64
"""Rows of a round that these sequences are chosen from, the shortest ones."""


def probe_rows(total_tokens_R: Rows) -> Rows:
    """Return a few short rows to compare an export with: their logits are held whole."""
    short = np.argsort(total_tokens_R[:PROBE_FROM_ROWS], kind="stable")
    fits = np.cumsum(total_tokens_R[short]) <= PROBE_TOKENS
    return np.sort(short[: max(1, int(fits.sum()))])
