"""The `vllm` engine: vLLM's offline engine, for sampling and for teacher scores.

Promises: every sampling parameter is explicit; scores are `pipeline.scores.signals` of full
logits, taken inside vLLM's workers; a prefix cache is never read for scores; a request becomes
arrays as it finishes. On a CPU the engine lives in this process; on GPUs vLLM gives it processes of
its own, which return the devices' memory when they end. Shapes: T tokens, N candidates.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.memory import capacity
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.adapter import Held, start_with, unmerged
from pipeline.engines.vllm.arguments import LEAST_BATCH_TOKENS
from pipeline.engines.vllm.host import VllmHost
from pipeline.engines.vllm.requests import (
    check_temperature,
    sampling_params,
    score_params,
)
from pipeline.models.head import rows_in
from pipeline.models.source import ModelSource
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.errors import DataError
from schemas.fingerprint import sequence_digest
from schemas.scoresignal import Signal

HELD_TOKENS = 1 << 16
"""Response tokens whose signals may wait in the workers."""


class VllmEngine:
    """A model held by vLLM."""

    name = "vllm"

    def __init__(self, start: Start, *, version: str, note: Note) -> None:
        """Start vLLM with a model.

        Args:
            start: the model and its settings.
            version: the versions that its numbers depend on.
            note: told where an adapter is merged.
        """
        self.version, self._start = version, start
        self._batch_tokens = start.section.batch_tokens
        self._host, self._held, self._model = start_with(start, self._run, note=note)
        self.vocab_size = self._host.vocab_size
        self.context_length = self._host.context_length
        self._rows = 0

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return one response per prompt, each drawn with its own seed."""
        check_temperature(sampling.temperature)
        assert self._start.reads_text or not sampling.stop_strings, (
            "vLLM would overlook the strings"
        )
        samples: dict[int, Sample] = {}

        def finished(row: int, output: Any) -> None:
            samples[row] = _sample(output.outputs[0], sampling.candidates)

        with capacity("sampling"):
            self._host.run(prompts, [sampling_params(sampling, seed) for seed in seeds], finished)
        drawn = [samples[row] for row in range(len(prompts))]
        return self._with_own(prompts, drawn, seeds, sampling) if sampling.sample else drawn

    def score(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        *,
        signal: Signal,
        vocab_size: int,
        candidates: Sequence[Ids] | None = None,
    ) -> Scores:
        """Return scores of every response token, rows joined in the given order."""
        self._host.collect("opd_begin", signal.words(), vocab_size, self._chunk_tokens)
        jobs, whole = list[dict[str, Any]](), []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            whole.append(np.concatenate([prompt, response]))
            job: dict[str, Any] = {"prompt": len(prompt)}
            if signal.draws or signal.sample:
                job["digest"] = sequence_digest(prompt, response)
            if candidates is not None:
                job["candidates"] = np.ascontiguousarray(candidates[row], np.int32).tobytes()
            jobs.append(job)
        rows = self._collected(whole, jobs, [len(r) for r in responses])
        return Scores.of({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})

    def _with_own(
        self,
        prompts: Sequence[Ids],
        samples: list[Sample],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Sample]:
        """Return samples with one of what each token was drawn from, from a pass that reads them.

        vLLM shows no more than the likeliest ids while it draws. The last token of a response is
        not read, for nothing follows it, so that a sequence may fill the whole context.
        """
        self._host.collect("opd_begin_own", sampling.words(), self._chunk_tokens)
        whole = [np.concatenate([p, s.ids[:-1]]) for p, s in zip(prompts, samples, strict=True)]
        jobs: list[dict[str, Any]] = [
            {"prompt": len(prompt), "seed": int(seed), "after": [int(sample.ids[-1])]}
            for prompt, sample, seed in zip(prompts, samples, seeds, strict=True)
        ]
        rows = self._collected(whole, jobs, [len(sample.ids) for sample in samples])
        return [
            replace(sample, sample_ids=row["sample_ids"], sample_logprobs=row["sample_logprobs"])
            for sample, row in zip(samples, rows, strict=True)
        ]

    def _collected(
        self, sequences: Sequence[Ids], jobs: Sequence[dict[str, Any]], lengths: Sequence[int]
    ) -> list[dict[str, NDArray[Any]]]:
        """Return what the workers collect of sequences that are read, row by row."""
        base = self._rows
        self._rows += len(sequences)
        params = [score_params({"row": base + row, **job}) for row, job in enumerate(jobs)]
        taken = _Taken(self._host, lengths, base)
        with capacity("scoring"):
            self._host.run(sequences, params, lambda row, output: taken.add(row))
        return taken.rows()

    def shrink(self) -> bool:
        """Start again with half the tokens in a forward pass; return whether that was left."""
        if self._batch_tokens // 2 < LEAST_BATCH_TOKENS:
            return False
        self._batch_tokens //= 2
        self._host.close()
        self._host = self._run(self._held)
        return True

    def reload(self, source: ModelSource) -> None:
        """Put the weights of another checkpoint of the same model in the place of those held.

        They are in doubt until they were compared with the checkpoint: vLLM says nothing of parts
        that it did not replace.

        Raises:
            ConfigError: vLLM holds an adapter that is merged, or one of another shape.
        """
        self._host.reload(unmerged(source))
        self.relocate(source)

    def relocate(self, source: ModelSource) -> None:
        """Note where the weights that are held lie now, for a start with less memory."""
        merged = source.base is not None and self._held.adapter is None
        self._held = self._held if merged else unmerged(source)
        self._start = replace(self._start, source=source)

    def close(self) -> None:
        """End vLLM and give its memory back."""
        with self._model:
            self._host.close()

    def _run(self, held: Held) -> VllmHost:
        return VllmHost(self._start, held, batch_tokens=self._batch_tokens)

    @property
    def _chunk_tokens(self) -> int:
        rows = rows_in(self._start.section.logit_chunk_mb, self.vocab_size)
        return min(rows, self._batch_tokens)


class _Taken:
    """Signals of finished rows, fetched from the workers before too many wait there."""

    def __init__(self, host: VllmHost, lengths: Sequence[int], base: int) -> None:
        self._host, self._lengths, self._base = host, lengths, base
        self._waiting: list[int] = []
        self._held = 0
        self._rows: dict[int, dict[str, NDArray[Any]]] = {}

    def add(self, row: int) -> None:
        """Note that a row is finished."""
        self._waiting.append(row)
        self._held += self._lengths[row]
        if self._held >= HELD_TOKENS:
            self._fetch()

    def rows(self) -> list[dict[str, NDArray[Any]]]:
        """Return the arrays of all rows.

        Raises:
            DataError: a row lacks positions.
        """
        self._fetch()
        return [self._rows[row] for row in range(len(self._lengths))]

    def _fetch(self) -> None:
        packed = self._host.take([self._base + row for row in self._waiting])
        for row, arrays in zip(self._waiting, packed, strict=True):
            found = {name: _array(value) for name, value in arrays.items()}
            if len(found["token_logprob"]) != self._lengths[row]:
                raise DataError(
                    f"vLLM read {len(found['token_logprob'])} of {self._lengths[row]} tokens of "
                    "a row; nothing was stored. Report it with vLLM's version"
                )
            self._rows[row] = found
        self._waiting, self._held = [], 0


def _sample(output: Any, candidates: int) -> Sample:
    """Return a finished response; vLLM's first column is the token, the others are its top."""
    ids = np.array(output.token_ids, dtype=np.int32)
    logprobs = np.array(output.logprobs.logprobs, dtype=np.float32).reshape(len(ids), -1)
    columns = np.array(output.logprobs.token_ids, dtype=np.int32).reshape(len(ids), -1)
    if logprobs.shape[1] != 1 + candidates or (columns[:, 0] != ids).any():
        raise DataError(
            f"vLLM returned {logprobs.shape[1]} log-probabilities of each token where "
            f"{1 + candidates} were asked for, or of other tokens; nothing was stored"
        )
    return Sample(
        ids=ids,
        logprobs=logprobs[:, 0].copy(),
        finish_reason=str(output.finish_reason),
        candidate_ids=columns[:, 1:].copy() if candidates else None,
        candidate_logprobs=logprobs[:, 1:].copy() if candidates else None,
    )


def _array(packed: tuple[str, list[int], bytes]) -> NDArray[Any]:
    kind, shape, data = packed
    return np.frombuffer(data, dtype=kind).reshape(shape)
