"""A checkpoint's probe: a few sequences, and the log-probabilities that its own weights give them.

It lies beside the weights, so that an engine that is said to hold them can be asked. Promises: it
is named after its content, for attempts at one checkpoint may differ in the last bits; it is no
part of a policy version. Shapes: T response tokens, rows joined.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from schemas.columns import Floats, Ids
from schemas.records.record import Versioned
from schemas.records.training import CheckpointManifest

PREFIX, SUFFIX = "opd-probe-", ".json"


class Probe(Versioned):
    """Sequences and log-probabilities, by row."""

    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    """Of each response token, nats; float32 values of a transformers forward in the student's
    number format."""

    @property
    def prompts(self) -> list[Ids]:
        """Return the prompt ids of each row."""
        return [np.array(ids, np.int32) for ids in self.prompt_ids]

    @property
    def responses(self) -> list[Ids]:
        """Return the response ids of each row."""
        return [np.array(ids, np.int32) for ids in self.response_ids]

    @property
    def logprobs_T(self) -> Floats:
        """Return the log-probabilities of all rows, joined."""
        return np.concatenate([np.array(row, np.float32) for row in self.logprobs])


def make_probe(rows: Sequence[Ids], prompt_tokens: Sequence[int], logprobs_T: Floats) -> Probe:
    """Return the probe of some sequences.

    Args:
        rows: prompt and response ids of each.
        prompt_tokens: tokens of each prompt.
        logprobs_T: what the checkpoint gives for their response tokens.
    """
    parts = [(row[:end], row[end:]) for row, end in zip(rows, prompt_tokens, strict=True)]
    ends = np.cumsum([len(response) for _, response in parts])[:-1]
    return Probe(
        prompt_ids=tuple(tuple(prompt.tolist()) for prompt, _ in parts),
        response_ids=tuple(tuple(response.tolist()) for _, response in parts),
        logprobs=tuple(tuple(part.tolist()) for part in np.split(logprobs_T, ends)),
    )


def write_probe(folder: Path, probe: Probe) -> None:
    """Write a probe into a checkpoint's folder, before that is published."""
    data = probe.to_bytes()
    name = f"{PREFIX}{hashlib.sha256(data).hexdigest()[:16]}{SUFFIX}"
    (folder / name).write_bytes(data)


def find_probe(folder: Path, manifest: CheckpointManifest) -> Probe | None:
    """Return a checkpoint's probe; None where it has none, as the student as it came.

    Args:
        folder: a local folder with the checkpoint's verified files.
        manifest: names the file, for there may be others of attempts that did not stand.

    Raises:
        DataError: the file is not a probe.
    """
    names = [n for n in manifest.files if n.startswith(PREFIX) and n.endswith(SUFFIX)]
    if not names:
        return None
    path = folder / names[0]
    return Probe.from_bytes(path.read_bytes(), where=str(path))
