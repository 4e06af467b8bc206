"""The `server` engine: vLLM's HTTP servers, elsewhere or one that is started here. Token ids only.

Promises: a reply is used only after every number in it was checked; a server that fails is passed
over; scores are the top-k and what follows from them. Shapes: T tokens of all rows joined.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.installed import engine_version
from pipeline.engines.server.check import ServerCheck
from pipeline.engines.server.client import Server, api_key
from pipeline.engines.server.derivedtail import derived_scores
from pipeline.engines.server.pool import Request, ServerPool
from pipeline.engines.server.process import ServerProcess
from pipeline.engines.server.replies import parse, scored
from pipeline.engines.server.requests import request_of, sampling_parameters, scoring_parameters
from pipeline.engines.server.samples import read_sample
from pipeline.engines.server.topk import top_rows
from pipeline.engines.vllm.adapter import NAME, Held, start_with
from pipeline.engines.vllm.arguments import (
    LEAST_BATCH_TOKENS,
    check_server_split,
    model_arguments,
    worker_environment,
)
from pipeline.engines.vllm.requests import check_temperature
from pipeline.models.source import ModelSource, load_settings
from pipeline.models.stopstrings import StopStrings, stop_strings_of
from pipeline.models.tokenizer import tokenizer_place
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError, DataError
from schemas.scoresignal import Signal, signal_for


class ServerEngine:
    """A model that one or several servers hold."""

    name = "server"

    def __init__(
        self,
        source: ModelSource,
        *,
        dtype: str,
        settings: EngineSection,
        max_tokens: int,
        note: Callable[[str], None] = lambda text: None,
        reads_text: bool = False,
    ) -> None:
        """Make sure that the servers are the right ones, after starting one where none is named.

        Args:
            source: the model.
            dtype: number format of weights and activations.
            settings: the stage's section.
            max_tokens: longest prompt and response together.
            note: told of a start that takes long.
            reads_text: whether responses may end at stop strings; a server of our own needs the
                tokenizer then.
        """
        self._settings, self._batch_tokens = settings, settings.batch_tokens
        self.vocab_size = int(load_settings(source).get_text_config().vocab_size)
        self._note = note
        local = not settings.server.urls
        if local:
            check_server_split(settings)
        self._process: ServerProcess | None = None
        self._stops_of = lru_cache(maxsize=2)(partial(stop_strings_of, source))
        begin = partial(
            model_arguments,
            dtype=dtype,
            settings=settings,
            max_tokens=max_tokens,
            tokenizer=tokenizer_place(source) if reads_text else None,
        )
        self._check = ServerCheck(
            settings.server.model, max_tokens, vocab_size=self.vocab_size, dtype=dtype
        )

        def start(held: Held) -> None:
            self._held, self._arguments = held, partial(begin, held.source)
            self._check.model = NAME if held.adapter else settings.server.model
            self._begin()

        whole = source if local else source.whole  # those elsewhere hold what they are asked for
        _, self._model = start_with(whole, start, dtype=dtype, note=note)
        self.version = engine_version(self.name) if local else f"vllm-{self._check.version}"
        self.context_length = self._check.context_length

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return one response per prompt, each drawn with its own seed."""
        check_temperature(sampling.temperature)
        if sampling.candidates > (known := sampling.vocab_size or self.vocab_size):
            raise ConfigError(
                f"rollout.candidates = {sampling.candidates}, but the vocabulary has {known} ids"
            )
        stops = self._stops_of(sampling.stop_strings)
        self._have_checked(stops)
        rows = zip(prompts, seeds, strict=True)
        requests = [self._sample_request(ids, seed, sampling, stops) for ids, seed in rows]
        return self._pool.ask(requests)

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
            replies = self._pool.ask(
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
        if self._process is None or self._batch_tokens // 2 < LEAST_BATCH_TOKENS:
            return False
        self._batch_tokens //= 2
        self._end()
        self._begin()
        return True

    def close(self) -> None:
        """End the connections, and the server if it is ours."""
        with self._model:
            self._end()

    def _have_checked(self, stops: StopStrings | None) -> None:
        """Let the servers show that they can sample, before they are first asked to."""
        unseen = stops is not None and stops is not self._check.stops
        if unseen or not self._check.samples:
            self._check.samples, self._check.stops = True, stops
            self._pool.settle(again=True)

    def _end(self) -> None:
        self._pool.close()
        if self._process is not None:
            self._process.close()
            self._process = None

    def _begin(self) -> None:
        section = self._settings.server
        if section.urls:
            self._pool = ServerPool(
                section.urls, section, key=api_key(section), check=self._check.check
            )
        else:
            arguments = self._server_arguments()
            self._process = ServerProcess(
                arguments, self._note, environment=worker_environment(arguments)
            )
            self._pool = ServerPool(
                [self._process.url],
                section,
                key=self._process.key,
                check=self._check.check,
                alive=self._process.check_alive,
            )
        try:
            self._pool.settle()
        except BaseException:
            self._end()
            raise

    def _server_arguments(self) -> dict[str, Any]:
        return {
            **self._arguments(batch_tokens=self._batch_tokens),
            **self._held.arguments,
            "lora_modules": self._held.module,
            "data_parallel_size": self._settings.vllm.data_parallel_size,
            "enable_scale_out": True,
            "disable_uvicorn_access_log": True,
        }

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

        return Request(make, read)

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

        return Request(make, read)
