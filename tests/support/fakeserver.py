"""A small stand-in for vLLM's HTTP server, with both endpoints, whose replies can be spoilt.

Its model is a function of the last ids, so that every number of a reply can be checked. As a module
it starts as vLLM does, for tests of processes.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.server.check import FIXED_STRIDE
from pipeline.engines.server.requests import COMPACT, COMPLETIONS
from tests.support.stopgolden import holds_one

Doubles = NDArray[np.float64]
Fault = Callable[[dict[str, Any]], Any]
"""Spoils a reply, or answers with a status in its place."""


class FakeVllm:
    """A server on a free loopback port."""

    def __init__(self, vocab: int, *, port: int = 0, **settings: Any) -> None:
        """Start to listen.

        Args:
            vocab: ids of the model.
            port: port to listen on; 0 for a free one.
            settings: `compact`, `version`, `key`, `models`, `length`, `weights`, `processed`,
                `delay_s`, `tokenizer`.
        """
        self.vocab = vocab
        self.compact: bool = settings.get("compact", True)
        self.version: str = settings.get("version", "0.32.0")
        self.key: str | None = settings.get("key")
        self.models: tuple[str, ...] = settings.get("models", ("m",))
        self.length: int = settings.get("length", 61)
        self.weights: int = settings.get("weights", 0)
        self.processed: bool = settings.get("processed", True)
        self.delay_s: float = settings.get("delay_s", 0.0)
        self.tokenizer: Any = settings.get("tokenizer")
        """As vLLM without one, it overlooks stop strings where it is None."""
        self.faults: deque[Fault] = deque()
        self.requests, self.busy, self.busiest = 0, 0, 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def die(self) -> None:
        """Cut every connection from now on."""
        self.faults.extend([lambda reply: None] * 10_000)
        self.close()

    def logprobs(self, before: list[int]) -> Doubles:
        """Return the log-probabilities of the id after some others."""
        logits = 2 * np.random.default_rng([self.weights, *before[-3:]]).normal(size=self.vocab)
        return np.asarray(logits - np.logaddexp.reduce(logits))

    def is_probe(self, ids: list[int]) -> bool:
        """Return whether ids are those that opd sends before it believes a server."""
        fixed = [FIXED_STRIDE * (i + 1) % self.vocab for i in range(len(ids))]
        return ids == fixed

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request of either endpoint."""
        compact = "token_ids" in body
        ids = body["token_ids" if compact else "prompt"]
        time.sleep(0 if self.is_probe(ids) else self.delay_s)
        given = body["sampling_params"] if compact else body
        sampled, logprobs = self._sample(ids, given)
        stopped = bool(sampled) and self._ends(ids, sampled, given)
        choice: dict[str, Any] = {"index": 0, "token_ids": sampled}
        choice["finish_reason"] = "stop" if stopped else "length"
        num = given.get("logprobs")
        if num is not None:
            choice["logprobs"] = (_compact if compact else _completion)(sampled, logprobs, num)
        found: dict[str, Any] = {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}
        holder = found if compact else choice
        holder["prompt_logprobs"] = None
        if given.get("prompt_logprobs") is not None:
            rows = [self._row(ids, i, given["prompt_logprobs"]) for i in range(1, len(ids))]
            holder["prompt_logprobs"] = [None, *rows]
        return found

    def _row(self, ids: list[int], index: int, k: int) -> dict[str, dict[str, Any]]:
        logprobs = self.logprobs(ids[:index])
        order = np.argsort(-logprobs, kind="stable").tolist()
        token = ids[index]
        named = [token, *(i for i in order[:k] if i != token)]
        return {str(i): {"logprob": float(logprobs[i]), "rank": order.index(i) + 1} for i in named}

    def _sample(self, ids: list[int], given: dict[str, Any]) -> tuple[list[int], list[Doubles]]:
        random = np.random.default_rng(given.get("seed", 0))
        sampled: list[int] = []
        found: list[Doubles] = []
        while len(sampled) < given["max_tokens"]:
            raw = self.logprobs([*ids, *sampled])
            logits = raw.copy()
            for name, bias in (given.get("logit_bias") or {}).items():
                logits[int(name)] += bias
            if given.get("top_k"):
                logits[logits < np.sort(logits)[-given["top_k"]]] = -np.inf
            logits = logits / (given["temperature"] or 1.0)
            logprobs = logits - np.logaddexp.reduce(logits)
            token = int(random.choice(self.vocab, p=np.exp(logprobs)))
            sampled.append(token if given["temperature"] else int(logprobs.argmax()))
            found.append(logprobs if self.processed else raw)
            if self._ends(ids, sampled, given):
                break
        return sampled, found

    def _ends(self, ids: list[int], sampled: list[int], given: dict[str, Any]) -> bool:
        """Return whether a response ends with its last token, by itself."""
        if sampled[-1] in given.get("stop_token_ids", ()):
            return True
        if self.tokenizer is None or not given.get("stop"):
            return False
        assert given["include_stop_str_in_output"] and not given["skip_special_tokens"]
        assert given.get("detokenize", True)
        return holds_one(self.tokenizer, ids, sampled, given["stop"])


def _top(token: int, logprobs: Doubles, num: int) -> list[tuple[int, float, int]]:
    """Return ids, log-probabilities and ranks: the token first, then the likeliest."""
    order = np.argsort(-logprobs, kind="stable").tolist()
    named = [token, *(i for i in order[:num] if i != token)]
    return [(i, max(float(logprobs[i]), -9999.0), order.index(i) + 1) for i in named]


def _compact(sampled: list[int], logprobs: list[Doubles], num: int) -> dict[str, Any]:
    content = []
    for token, row in zip(sampled, logprobs, strict=True):
        tops = [
            {"token_id": one, "logprob": logprob, "rank": rank}
            for one, logprob, rank in _top(token, row, num)
        ]
        content.append({**tops[0], "top_logprobs": tops[: max(num, 1)]})
    return {"content": content}


def _completion(sampled: list[int], logprobs: list[Doubles], num: int) -> dict[str, Any]:
    tops = [_top(token, row, num) for token, row in zip(sampled, logprobs, strict=True)]
    return {
        "tokens": [f"token_id:{token}" for token in sampled],
        "token_logprobs": [top[0][1] for top in tops],
        "top_logprobs": [{f"token_id:{i}": value for i, value, _ in top} for top in tops],
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeVllm

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:  # noqa: N802 - the name is the library's
        """Answer what is asked before any work."""
        if self.path == "/health":
            return self._send(200, {})
        if not self._allowed():
            return None
        models = [{"id": name, "max_model_len": self.fake.length} for name in self.fake.models]
        known: dict[str, Any] = {
            "/version": {"version": self.fake.version},
            "/v1/models": {"data": models},
        }
        if self.path in known:
            return self._send(200, known[self.path])
        return self._send(405 if self.path in self._endpoints() else 404, {"detail": "no"})

    def do_POST(self) -> None:  # noqa: N802 - the name is the library's
        """Answer a request, spoilt where a fault is due."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path not in self._endpoints():
            return self._send(404, {"detail": "Not Found"})
        probe = self.fake.is_probe(body.get("token_ids") or body.get("prompt"))
        with self.fake.lock:
            fault = None if probe or not self.fake.faults else self.fake.faults.popleft()
            self.fake.requests += not probe
            self.fake.busy += 1
            self.fake.busiest = max(self.fake.busiest, self.fake.busy)
        try:
            reply = self.fake.reply(body)
            found = reply if fault is None else fault(reply)
        finally:
            with self.fake.lock:
                self.fake.busy -= 1
        if found is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(found, int):
            self._send(found, {"error": {"message": "injected", "code": found}})
        elif isinstance(found, tuple):
            self._send(200, found[1], packed=found[0])
        else:
            self._send(200, found)

    def _endpoints(self) -> tuple[str, ...]:
        return (COMPLETIONS, COMPACT) if self.fake.compact else (COMPLETIONS,)

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization")
        if self.fake.key is None or given == f"Bearer {self.fake.key}" or self.path == "/version":
            return True
        self._send(401, {"error": f"Unauthorized: {given}"})
        return False

    def _send(self, status: int, value: Any, *, packed: str | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        if packed is not None:
            self.send_header("Content-Encoding", packed)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # nobody reads on
            self.wfile.write(data)


def main() -> None:
    """Start as vLLM does: options, a key in the environment, a process of its own beside."""
    given = dict(pairwise(sys.argv[1:]))
    if "VLLM_FAKE_FAILS" in os.environ:
        sys.exit(f"ValueError: {os.environ['VLLM_FAKE_FAILS']}")
    beside = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(beside)
    vocab = json.loads((Path(given["--model"]) / "config.json").read_text())["vocab_size"]
    length = int(given["--max-model-len"])
    key = os.environ["VLLM_API_KEY"]
    delay_s = float(os.environ.get("VLLM_FAKE_SLOW", "0"))
    FakeVllm(vocab, port=int(given["--port"]), key=key, length=length, delay_s=delay_s)
    threading.Event().wait()


if __name__ == "__main__":
    main()
