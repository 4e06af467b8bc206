"""What is asked of a vLLM server before it is believed: version, model, weights, log-probabilities.

Promises: all servers of a pool have one version and the same numbers for a fixed sequence; servers
that sample give the log-probabilities of the distribution that is drawn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.server.client import BadReply, Server, ServerHttp, api_key
from pipeline.engines.server.pool import ServerPool
from pipeline.engines.server.replies import FORM_ERRORS, parse, scored
from pipeline.engines.server.requests import (
    COMPACT,
    request_of,
    sampling_parameters,
    scoring_parameters,
)
from pipeline.engines.server.samples import TextEnd, read_sample
from pipeline.engines.server.topk import top_rows
from pipeline.models.stopstrings import StopStrings
from pipeline.scores.drift import gap_of
from pipeline.scores.tolerances import servers_limit
from schemas.config.engines import ServerSection
from schemas.errors import ConfigError, IdentityError
from schemas.foreign import excerpt

FIXED_TOKENS = 16
"""Tokens of the sequence that every server is asked for."""

FIXED_STRIDE = 7919
"""Step from id to id of that sequence; a prime."""

MOST_NAME = 100
"""Characters of a version."""

ASK_S = 10.0
"""Seconds to wait for an answer where only the version is asked."""

TOP_ONE = Sampling(1.0, top_p=1.0, top_k=1, max_new_tokens=8, stop_token_ids=(), candidates=2)
"""Sampling that leaves no second id a probability, but where two have the very same logit."""


@dataclass
class ServerCheck:
    """What a server must be, and what the first one was found to be."""

    model: str | None
    needed_tokens: int
    """Tokens that a server must hold."""
    version: str | None = None
    context_length: int = 0
    """Tokens that every server holds."""
    vocab_size: int = 0
    """Ids of the model; 0 where nothing is computed."""
    dtype: str = "float32"
    samples: bool = False
    """Whether the servers are to sample."""
    stops: StopStrings | None = None
    """Strings at which they are to end responses."""
    first: tuple[str, NDArray[np.float64]] | None = None
    """The first server's URL and its log-probabilities of the fixed sequence."""

    async def check(self, http: ServerHttp, server: Server) -> None:
        """Make sure that a server is the right one, and note its model and its endpoint.

        Raises:
            BadReply: its answers have another form.
            ConfigError: it lacks the model, or the log-probabilities are of another kind.
            IdentityError: it is of another version or has other weights than the first one.
        """
        try:
            version = excerpt(str((await http.get(server, "/version"))["version"]), MOST_NAME)
            models = (await http.get(server, "/v1/models"))["data"]
            self._check_version(server, version)
            self._choose(server, models)
        except FORM_ERRORS as error:
            raise BadReply(f"is no vLLM server: /version or /v1/models lacks {error}") from error
        if self.vocab_size:
            server.compact = await http.takes(server, COMPACT)
            await self._check_weights(http, server)
            if self.samples:
                sampled = await self._check_kind(http, server)
                await self._check_stops(http, server, sampled)

    def _check_version(self, server: Server, version: str) -> None:
        self.version = self.version or version
        if version != self.version:
            raise IdentityError(
                f"{server.url} runs vLLM {version}, another server {self.version}: their scores "
                "would be of two scorers. Run one version on all"
            )

    def _choose(self, server: Server, models: Sequence[dict[str, Any]]) -> None:
        held = {str(model["id"]): model["max_model_len"] for model in models}
        held |= {  # an adapter holds what its base does
            str(model["id"]): held.get(model["parent"]) for model in models if model.get("parent")
        }
        known = {name: int(tokens) for name, tokens in held.items()}
        wanted = self.model or (next(iter(known)) if len(known) == 1 else None)
        if wanted not in known:
            raise ConfigError(
                f"{server.url} lists the models {excerpt(', '.join(known)) or 'none'}: "
                + (f"there is no {wanted!r} among them. " if wanted else "")
                + "Set server.model to one of them, or serve it"
            )
        if known[wanted] < self.needed_tokens:
            raise ConfigError(
                f"{server.url} holds {known[wanted]} tokens (max_model_len), but a prompt "
                f"and its response need {self.needed_tokens}: lower prompts.max_tokens or "
                "max_new_tokens, or raise --max-model-len"
            )
        server.model = wanted
        self.context_length = min(self.context_length or known[wanted], known[wanted])

    async def _check_weights(self, http: ServerHttp, server: Server) -> None:
        ids = self._fixed_ids(min(FIXED_TOKENS, self.context_length - 1))
        if len(ids) < 2:
            return
        body = request_of(ids, scoring_parameters(1), model=server.model, compact=server.compact)
        reply = scored(parse(await http.post(server, *body)))
        found = top_rows(reply, ids, start=1, k=1, vocab_size=self.vocab_size).token_logprob
        mine = found.astype(np.float64)
        first, expected = self.first = self.first or (server.url, mine)
        difference, allowed = gap_of(mine, expected).max, servers_limit(self.dtype)
        if not difference <= allowed:
            raise IdentityError(
                f"{server.url} and {first} differ by {difference:.3g} nats on the same tokens, "
                f"expected at most {allowed:g}: they serve other weights or number formats. Serve "
                "the same model on all"
            )

    async def _check_kind(self, http: ServerHttp, server: Server) -> Sample:
        """Make sure that log-probabilities are taken after temperature and truncation."""
        found = await self._sampled(http, server, TOP_ONE)
        if found.candidate_logprobs is None or not np.isneginf(found.candidate_logprobs).any():
            raise ConfigError(
                f"{server.url} gives log-probabilities of another distribution than the one that "
                "it draws from: start it with --logprobs-mode processed_logprobs"
            )
        return found

    async def _check_stops(self, http: ServerHttp, server: Server, sampled: Sample) -> None:
        """Make sure that a response ends at a string; a server without its tokenizer goes on."""
        prompt = np.array(self._fixed_ids(1), np.int32)
        text = None if self.stops is None else self.stops.first_text(prompt, sampled.ids)
        if self.stops is None or text is None:
            return
        stops = self.stops.beside(text)
        sampling = replace(TOP_ONE, stop_strings=stops.strings)
        try:
            await self._sampled(http, server, sampling, partial(stops.end, prompt))
        except BadReply as error:
            told = excerpt(str(error).partition(":")[0])
            raise ConfigError(
                f"{server.url} overlooks rollout.stop_strings ({told}): start it with the "
                "student's tokenizer, without --skip-tokenizer-init and --tokens-only"
            ) from error

    async def _sampled(
        self,
        http: ServerHttp,
        server: Server,
        sampling: Sampling,
        text_end: TextEnd = lambda ids: None,
    ) -> Sample:
        """Return what a server samples after the fixed prompt."""
        ids = self._fixed_ids(1)
        given = {"model_vocab": self.vocab_size}
        parameters = sampling_parameters(sampling, 0, compact=server.compact, **given)
        body = request_of(ids, parameters, model=server.model, compact=server.compact)
        reply = await http.post(server, *body)
        return read_sample(reply, sampling, prompt_tokens=len(ids), text_end=text_end, **given)

    def _fixed_ids(self, count: int) -> list[int]:
        return [FIXED_STRIDE * (i + 1) % self.vocab_size for i in range(count)]


def served_version(section: ServerSection, needed_tokens: int) -> str:
    """Return the version of the servers that answer, which must be one.

    Args:
        section: the servers.
        needed_tokens: most tokens of a sequence; the servers must hold one more.

    Raises:
        ConfigError: a server refuses the key, lacks the model or holds fewer tokens.
        IdentityError: there are several versions.
        StorageError: none answers.
    """
    check = ServerCheck(section.model, needed_tokens + 1)
    quick = section.model_copy(update={"timeout_s": min(ASK_S, section.timeout_s)})
    pool = ServerPool(section.urls, quick, key=api_key(section), check=check.check)
    try:
        pool.settle()
    finally:
        pool.close()
    return f"vllm-{check.version}"
