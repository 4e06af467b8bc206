"""What servers do wrong: faults that pass, wrong replies, death; nothing of it is believed."""

import gzip
import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from pipeline.engines.engine import Sample
from pipeline.models.source import ModelSource
from schemas.errors import DataError, StorageError
from schemas.scoresignal import Signal
from tests.support.fakeserver import Fault
from tests.support.golden import PLAIN, V, generate, rows
from tests.support.servergolden import FakeMaker, assert_scores, expected_scores, opened, scored


def hang(reply: dict[str, Any]) -> dict[str, Any]:
    time.sleep(1.5)
    return reply


PASSING: dict[str, Fault] = {
    "500": lambda reply: 500,
    "503": lambda reply: 503,
    "429": lambda reply: 429,
    "cut": lambda reply: None,
    "hang": hang,
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_leaves_no_trace(
    source: ModelSource, fake: FakeMaker, name: str
) -> None:
    server, (prompts, responses) = fake(), rows(12)
    with opened(source, server, timeout_s=0.5) as engine:
        server.faults.extend([PASSING[name]] * 3)
        found = scored(engine)
    assert not server.faults
    assert_scores(found, expected_scores(server, prompts, responses, k=4))


def last_row(reply: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = reply["prompt_logprobs"][-1]
    return row


def change_last(**changes: Any) -> Fault:
    def spoil(reply: dict[str, Any]) -> dict[str, Any]:
        list(last_row(reply).values())[-1].update(changes)
        return reply

    return spoil


def short(reply: dict[str, Any]) -> dict[str, Any]:
    reply["prompt_logprobs"].pop()
    return reply


def misaligned(reply: dict[str, Any]) -> dict[str, Any]:
    reply["prompt_logprobs"].insert(1, reply["prompt_logprobs"].pop())
    return reply


def too_few(reply: dict[str, Any]) -> dict[str, Any]:
    row = last_row(reply)
    for name in list(row)[-2:]:
        del row[name]
    return reply


def too_large_id(reply: dict[str, Any]) -> dict[str, Any]:
    row = last_row(reply)
    row[str(V + 3)] = row.pop(list(row)[-1])
    return reply


def logits(reply: dict[str, Any]) -> dict[str, Any]:
    for entry in last_row(reply).values():
        entry["logprob"] -= 20.0
    return reply


def huge_id(reply: dict[str, Any]) -> dict[str, Any]:
    row = last_row(reply)
    row[str(2**70)] = row.pop(list(row)[-1])
    return reply


def empty_row(reply: dict[str, Any]) -> dict[str, Any]:
    last_row(reply).clear()
    return reply


BAD: dict[str, tuple[Fault, str]] = {
    "short": (short, "positions"),
    "misaligned": (misaligned, "other tokens"),
    "too few": (too_few, "log-probabilities of a position"),
    "NaN": (change_last(logprob=math.nan), "NaN"),
    "null": (change_last(logprob=None), "NaN or null"),
    "positive": (change_last(logprob=0.5), "positive"),
    "no rank": (change_last(rank=0), "without a rank"),
    "wrong rank": (change_last(rank=9), "other ranks"),
    "order": (change_last(logprob=-1e-4), "rank order|no log-prob"),
    "id": (too_large_id, "outside"),
    "logits": (logits, "no log-probabilities of a distribution"),
    "form": (lambda reply: {"choices": []}, "another form"),
    "no JSON": (lambda reply: b"{", "no JSON"),
    "huge": (change_last(logprob=-(10**400)), "another form"),
    "huge id": (huge_id, "another form"),
    "empty row": (empty_row, "another form"),
    "deep": (lambda reply: b"[" * 200_000, "no JSON"),
    "long": (lambda reply: b" " * (3 << 20), "sent more than .* bytes"),
    "packed": (lambda reply: ("gzip", gzip.compress(b" " * (1 << 20))), "compressed its answer"),
    "of a terminal": (lambda reply: {"choices": {"\x1b[2J": 1}}, "another form"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_reply_is_asked_for_elsewhere_and_never_stored(
    source: ModelSource, fake: FakeMaker, name: str
) -> None:
    fault, words = BAD[name]
    bad, good, (prompts, responses) = fake(), fake(), rows(12)
    with opened(source, bad, good) as engine:
        bad.faults.extend([fault] * 100)
        found = scored(engine)
    assert len(bad.faults) < 100
    assert_scores(found, expected_scores(good, prompts, responses, k=4))
    with opened(source, bad) as engine, pytest.raises(DataError, match=words) as told:
        bad.faults.extend([fault] * 100)
        scored(engine)
    assert bad.url in str(told.value) and told.value.exit_code == 4
    assert str(told.value).isprintable()


def cut_response(reply: dict[str, Any]) -> dict[str, Any]:
    choice = reply["choices"][0]
    choice["token_ids"] = choice["token_ids"][:-1]
    choice["logprobs"]["content"].pop()
    return reply


def other_tokens(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0]["logprobs"]["content"][0]["token_id"] += 1
    return reply


def other_prompt(reply: dict[str, Any]) -> dict[str, Any]:
    reply["usage"]["prompt_tokens"] -= 1
    return reply


def no_number(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0]["logprobs"]["content"][0]["logprob"] = None
    return reply


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (cut_response, "ended a response"),
        (other_tokens, "other tokens"),
        (other_prompt, "prompt tokens"),
        (no_number, "NaN or null"),
    ],
)
def test_a_wrong_sample_is_never_used(
    source: ModelSource, fake: FakeMaker, fault: Fault, words: str
) -> None:
    server = fake()
    with opened(source, server) as engine:
        first = generate(engine, rows(3)[0], PLAIN, range(3))
        server.faults.append(fault)
        assert_same(generate(engine, rows(3)[0], PLAIN, range(3)), first)
        server.faults.extend([fault] * 9)
        with pytest.raises(DataError, match=words):
            generate(engine, rows(3)[0], PLAIN, range(3))


def assert_same(found: list[Sample], expected: list[Sample]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        np.testing.assert_array_equal(mine.logprobs, theirs.logprobs)


def test_the_requests_of_a_server_that_dies_go_to_the_other_one(
    source: ModelSource, fake: FakeMaker
) -> None:
    dying, other, (prompts, responses) = fake(), fake(), rows(40)
    with opened(source, dying, other, concurrency=2) as engine:
        timer = threading.Timer(0.05, dying.die)
        timer.start()
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
        timer.join()
        again = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    for scores in (found, again):
        assert_scores(scores, expected_scores(other, prompts, responses, k=4))
    with opened(source, "http://127.0.0.1:9", other) as engine:
        assert_scores(scored(engine, count=40), found)


def test_servers_that_are_all_dead_are_named_and_can_be_asked_again_later(
    source: ModelSource, fake: FakeMaker
) -> None:
    server = fake()
    with opened(source, server, retry_s=0.3) as engine:
        server.faults.extend([PASSING["500"]] * 999)
        with pytest.raises(StorageError, match="injected") as told:
            scored(engine)
    assert told.value.exit_code == 6 and server.url in str(told.value)
    dead = "http://127.0.0.1:9"
    with pytest.raises(StorageError, match=dead), opened(source, dead, retry_s=0.3):
        pass


def test_a_server_works_on_no_more_requests_than_it_may(
    source: ModelSource, fake: FakeMaker
) -> None:
    server, three = fake(), threading.Barrier(3)

    def meet(reply: dict[str, Any]) -> dict[str, Any]:
        three.wait(60)
        return reply

    with opened(source, server, concurrency=3, timeout_s=60.0) as engine:
        server.delay_s = 0.01
        server.faults.extend([meet] * 30)
        scored(engine, count=30)
    assert server.busiest == 3 and server.requests == 30
