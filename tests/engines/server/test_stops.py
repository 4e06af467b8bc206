"""Stop strings of a server: held against the text of its replies, or overlooked."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import EOS, make_tokenizer
from schemas.errors import ConfigError, DataError
from tests.support.fakeserver import Fault
from tests.support.golden import PLAIN, generate, rows
from tests.support.servergolden import FakeMaker, opened
from tests.support.stopgolden import assert_ends

STOPPED = replace(PLAIN, stop_strings=("1", "+3", "<eos>"), max_new_tokens=12)


@pytest.mark.parametrize("compact", [True, False])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    source: ModelSource, fake: FakeMaker, compact: bool
) -> None:
    server, prompts = fake(compact=compact, tokenizer=make_tokenizer()), rows(40)[0]
    with opened(source, server) as engine:
        samples = generate(engine, prompts, replace(STOPPED, candidates=2), range(40))
    for prompt, sample in zip(prompts, samples, strict=True):
        assert_ends(make_tokenizer(), prompt, sample, STOPPED)
    assert sum(s.finish_reason == "stop" and s.ids[-1] != EOS for s in samples) > 10


@pytest.mark.parametrize("compact", [True, False])
def test_a_server_that_overlooks_stop_strings_is_refused_before_it_samples(
    source: ModelSource, fake: FakeMaker, compact: bool
) -> None:
    server = fake(compact=compact)
    with opened(source, server) as engine:
        generate(engine, rows(1)[0], PLAIN, range(1))
        asked = server.requests
        with pytest.raises(ConfigError, match=r"overlooks rollout\.stop_strings.*without --skip"):
            generate(engine, rows(1)[0], STOPPED, range(1))
        assert server.requests == asked


def goes_on(reply: dict[str, Any]) -> dict[str, Any]:
    """Append a token to a response that ended."""
    (choice,) = reply["choices"]
    choice["token_ids"].append(choice["token_ids"][-1])
    choice["logprobs"]["content"].append(choice["logprobs"]["content"][-1])
    return reply


def ends_early(reply: dict[str, Any]) -> dict[str, Any]:
    """Leave only the first token of a response, as if its text had ended it."""
    (choice,) = reply["choices"]
    choice["finish_reason"] = "stop"
    del choice["token_ids"][1:], choice["logprobs"]["content"][1:]
    return reply


@pytest.mark.parametrize("fault", [goes_on, ends_early])
def test_an_end_that_the_text_does_not_have_is_not_believed(
    source: ModelSource, fake: FakeMaker, fault: Fault
) -> None:
    server, prompts = fake(tokenizer=make_tokenizer()), rows(8)[0]
    with opened(source, server) as engine:
        generate(engine, prompts, STOPPED, range(8))
        server.faults.extend([fault] * 99)
        with pytest.raises(DataError, match="ended a response.*with the student's tokenizer"):
            generate(engine, prompts, STOPPED, range(8))
