"""What the server engine must give, from the numbers of the stand-in that it asks."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.engines.opening import open_engine
from pipeline.engines.server.derivedtail import mass_error
from pipeline.engines.server.engine import ServerEngine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.config.engines import EngineSection, ServerSection
from schemas.scoresignal import Signal
from tests.support.fakeserver import FakeVllm
from tests.support.golden import V, rows

FIELDS = ("topk_ids", "topk_logprobs", "token_logprob", "token_rank")
FakeMaker = Callable[..., FakeVllm]


class Believing:
    """A ledger that takes every engine for held: a stand-in's numbers are of no model."""

    def has(self, seen: Mapping[str, Any]) -> bool:
        """Return that it was held."""
        return True

    def keep(self, seen: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Never come here, for nothing is held."""
        raise AssertionError(seen)


@contextmanager
def opened(
    source: ModelSource, *servers: FakeVllm | str, **settings: Any
) -> Iterator[ServerEngine]:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    given = {"retry_s": 10.0, "timeout_s": 5.0, **settings}
    section = EngineSection(engine="server", server=ServerSection(urls=tuple(urls), **given))
    engine = open_server(source, section)
    try:
        yield engine
    finally:
        engine.close()


def open_server(
    source: ModelSource, section: EngineSection, *, max_tokens: int = 60, reads_text: bool = False
) -> ServerEngine:
    """Return a server engine, which is the caller's to close."""
    start = Start(
        source,
        section,
        dtype="float32",
        use="sample",
        max_tokens=max_tokens,
        reads_text=reads_text,
        ledger=Believing(),
    )
    engine = open_engine(start, print)
    assert isinstance(engine, ServerEngine)
    return engine


def expected_scores(
    server: FakeVllm, prompts: list[Ids], responses: list[Ids], *, k: int, limit: int = V
) -> Scores:
    """Return what the stand-in's numbers mean, token by token."""
    found: dict[str, list[Any]] = {name: [] for name in (*FIELDS, "tail_logprobs")}
    for prompt, response in zip(prompts, responses, strict=True):
        ids = [*prompt.tolist(), *response.tolist()]
        for place in range(len(prompt), len(ids)):
            logprobs, token = server.logprobs(ids[:place]), ids[place]
            top = sorted(range(limit), key=lambda i: -logprobs[i])[:k]  # noqa: B023
            rest = sum(math.exp(x) for i, x in enumerate(logprobs) if i not in top)
            found["topk_ids"].append(top)
            found["topk_logprobs"].append(logprobs[top])
            found["tail_logprobs"].append(math.log(rest) if rest else -math.inf)
            found["token_logprob"].append(logprobs[token])
            found["token_rank"].append(1 + int((logprobs > logprobs[token]).sum()))
    return Scores.of({name: np.array(values) for name, values in found.items()})


def assert_scores(found: Scores, expected: Scores) -> None:
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    mass, exact = np.exp(found.tail_logprobs.astype(float)), np.exp(expected.tail_logprobs)
    np.testing.assert_allclose(mass, exact, rtol=1e-6, atol=mass_error(V))
    assert found.entropy is None and found.tail_logprobs.dtype == np.float32


def scored(engine: ServerEngine, k: int = 4, count: int = 12) -> Scores:
    prompts, responses = rows(count)
    return engine.score(prompts, responses, signal=Signal(k), vocab_size=V)
