"""The `server` engine: vLLM's HTTP servers, elsewhere or one that is started here. Token ids only.

Promises: a reply is used only after every number in it was checked; a server that fails is passed
over; scores are the top-k and what follows from them. Shapes: T tokens of all rows joined.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.server.check import ServerCheck
from pipeline.engines.server.client import Server, api_key
from pipeline.engines.server.derivedtail import derived_scores
from pipeline.engines.server.pool import Request, ServerPool
from pipeline.engines.server.process import ServerProcess
from pipeline.engines.server.replies import parse, scored
from pipeline.engines.server.requests import (
    reply_limit,
    request_of,
    sampling_parameters,
    scoring_parameters,
)
from pipeline.engines.server.samples import read_sample
from pipeline.engines.server.topk import top_rows
from pipeline.engines.start import Note, Start
from pipeline.engines.vllm.adapter import NAME, Held, start_with
from pipeline.engines.vllm.arguments import (
    LEAST_BATCH_TOKENS,
    check_server_split,
    model_arguments,
    worker_environment,
)
from pipeline.engines.vllm.requests import check_temperature
from pipeline.models.source import load_settings
from pipeline.models.stopstrings import ModelStops, StopStrings
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.errors import DataError
from schemas.scoresignal import Signal, signal_for


@dataclass(frozen=True)
class _Running:
    """Servers that answer, and the process of one that was started here."""

    pool: ServerPool
    process: ServerProcess | None

    def close(self) -> None:
        """End the connections, and the server if it is ours."""
        self.pool.close()
        if self.process is not None:
            self.process.close()


class ServerEngine:
    """A model that one or several servers hold."""

    name = "server"

    def __init__(self, start: Start, *, installed: str | None, note: Note) -> None:
        """Make sure that the servers are the right ones, after starting one where none is named.

        Args:
            start: the model and its settings.
            installed: version of a server that is started here; None for what servers elsewhere
                say of theirs.
            note: told of a start that takes long, and where an adapter is merged.
        """
        section = start.section.server
        if not section.urls:
            check_server_split(start.section)
        self._start, self._note = start, note
        self._batch_tokens = start.section.batch_tokens
        self.vocab_size = int(load_settings(start.source).get_text_config().vocab_size)
        self._stops = ModelStops(start.source)
        self._check = ServerCheck(
            section.model, _needed_tokens(start), vocab_size=self.vocab_size, dtype=start.dtype
        )
        # those elsewhere hold what they are asked for, an adapter too
        asked = replace(start, source=start.source.whole) if section.urls else start
        self._running, self._held, self._model = start_with(asked, self._run, note=note)
        self.version = installed or f"vllm-{self._check.version}"
        self.context_length = self._check.context_length

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return one response per prompt, each drawn with its own seed."""
        check_temperature(sampling.temperature)
        sampling.check_vocabulary(self.vocab_size)
        stops = self._stops.of(sampling.stop_strings)
        self._have_checked(stops)
        rows = zip(prompts, seeds, strict=True)
        requests = [self._sample_request(ids, seed, sampling, stops) for ids, seed in rows]
        return self._running.pool.ask(requests)

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
        signal = signal_for(self.name, signal)
        rows = list(zip(prompts, responses, strict=True))
        found: dict[int, Scores] = {}
        for k in sorted({signal.k, self._widest(signal.k, vocab_size)}):
            lacking = [row for row in range(len(rows)) if row not in found]
            replies = self._running.pool.ask(
                [self._score_request(*rows[row], signal, k, vocab_size) for row in lacking]
            )
            for row, scores in zip(lacking, replies, strict=True):
                if scores is not None:
                    found[row] = scores
        if len(found) < len(rows):
            raise DataError(
                f"the servers' likeliest ids hold fewer than {signal.k} of the student's; nothing "
                "was stored. Lower score.k, or set score.engine to 'vllm' or 'hf'"
            )
        return Scores.joined([found[row] for row in range(len(rows))])

    def shrink(self) -> bool:
        """Start a server of our own again with half the tokens in a forward pass, if any is left.

        Others are asked for fewer tokens by nobody but those who started them.
        """
        if self._running.process is None or self._batch_tokens // 2 < LEAST_BATCH_TOKENS:
            return False
        self._batch_tokens //= 2
        self._running.close()
        self._running = self._run(self._held)
        return True

    def close(self) -> None:
        """End the connections, and the server if it is ours."""
        with self._model:
            self._running.close()

    def _have_checked(self, stops: StopStrings | None) -> None:
        """Let the servers show that they can sample, before they are first asked to."""
        unseen = stops is not None and stops is not self._check.stops
        if unseen or not self._check.samples:
            self._check.samples, self._check.stops = True, stops
            self._running.pool.settle(again=True)

    def _run(self, held: Held) -> _Running:
        """Return servers that hold the model and were checked, one of our own where none is named.

        Args:
            held: what a server of our own holds of the model.
        """
        section = self._start.section.server
        if section.urls:
            pool = ServerPool(section.urls, section, key=api_key(section), check=self._check.check)
            running = _Running(pool, None)
        else:
            self._check.model = NAME if held.adapter else section.model
            running = self._run_own(held)
        try:
            running.pool.settle()
        except BaseException:
            running.close()
            raise
        return running

    def _run_own(self, held: Held) -> _Running:
        arguments = {
            **model_arguments(self._start, held.source, batch_tokens=self._batch_tokens),
            **held.arguments,
            "lora_modules": held.module,
            "data_parallel_size": self._start.section.vllm.data_parallel_size,
            "enable_scale_out": True,
            "disable_uvicorn_access_log": True,
        }
        environment = worker_environment(arguments)
        process = ServerProcess(arguments, self._note, environment=environment)
        pool = ServerPool(
            [process.url],
            self._start.section.server,
            key=process.key,
            check=self._check.check,
            alive=process.check_alive,
        )
        return _Running(pool, process)

    def _widest(self, k: int, vocab_size: int) -> int:
        """Return how many ids hold k of the student's, whichever of the others are before them."""
        return min(k + max(0, self.vocab_size - vocab_size), self.vocab_size)

    def _sample_request(
        self, ids: Ids, seed: int, sampling: Sampling, stops: StopStrings | None
    ) -> Request[Sample]:
        given: dict[str, Any] = {"prompt_tokens": len(ids), "model_vocab": self.vocab_size}
        if stops is not None:
            given["text_end"] = partial(stops.end, ids)

        def make(server: Server) -> tuple[str, dict[str, Any]]:
            parameters = sampling_parameters(
                sampling, seed, model_vocab=self.vocab_size, compact=server.compact
            )
            return request_of(ids.tolist(), parameters, model=server.model, compact=server.compact)

        def read(data: bytes) -> Sample:
            return read_sample(data, sampling, **given)

        tokens = len(ids) + sampling.max_new_tokens
        return Request(make, read, reply_limit(tokens, sampling.candidates))

    def _score_request(
        self, prompt: Ids, response: Ids, signal: Signal, k: int, vocab_size: int
    ) -> Request[Scores | None]:
        ids = [*prompt.tolist(), *response.tolist()]

        def make(server: Server) -> tuple[str, dict[str, Any]]:
            parameters = scoring_parameters(k)
            return request_of(ids, parameters, model=server.model, compact=server.compact)

        def read(data: bytes) -> Scores | None:
            reply = scored(parse(data))
            top = top_rows(reply, ids, start=len(prompt), k=k, vocab_size=self.vocab_size)
            return derived_scores(top, signal, vocab_size=vocab_size, model_vocab=self.vocab_size)

        return Request(make, read, reply_limit(len(ids), k))


def _needed_tokens(start: Start) -> int:
    """Return the most tokens of a sequence, without the one that scoring generates."""
    if start.max_tokens is not None:
        return start.max_tokens
    return int(load_settings(start.source).max_position_embeddings) - 1
