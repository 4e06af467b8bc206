"""An HTTP proxy that injects seeded faults between a client and a store.

Promises: a forced fault hits the next request that it fits; chosen ones follow the seed; every
request is counted under what happened to it. Must not: change bytes that it lets through.
"""

import http.client
import io
import random
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN = "slow_down"
INTERNAL_ERROR = "internal_error"
RESET_BEFORE = "reset_before"
RESET_AFTER = "reset_after"
TRUNCATE = "truncate"
CONFLICT = "conflict"
FLIP = "flip"
"""A bit of the body is another one; like the next two, it comes without any checksum header."""
HALVE = "halve"
"""Half of the body comes, and counts as all of it."""
EMPTY = "empty"
"""No body comes."""
OTHER_DIGIT = "other_digit"
"""A digit of a JSON number is another one, and no tag says so, as of stores that encrypt."""
DRIP = "drip"
"""The body of a reply, or what there is without one, comes byte by byte, `DRIP_S` apart."""
NONE = "none"

STORM = {
    SLOW_DOWN: 0.05,
    INTERNAL_ERROR: 0.05,
    RESET_BEFORE: 0.05,
    RESET_AFTER: 0.1,
    TRUNCATE: 0.1,
    CONFLICT: 0.1,
}
"""A mix of every fault that clients must survive."""

DRIP_S = 0.02

ERRORS = {
    SLOW_DOWN: (503, "SlowDown"),
    INTERNAL_ERROR: (500, "InternalError"),
    CONFLICT: (409, "ConditionalRequestConflict"),
}


def _other_digit(found: re.Match[bytes]) -> bytes:
    return b"%d" % (9 - int(found[0]))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    FLIP: lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    HALVE: lambda data: data[: len(data) // 2],
    EMPTY: lambda data: b"",
    OTHER_DIGIT: lambda data: re.sub(rb"(?<=:)\d", _other_digit, data, count=1),
}
PRECONDITIONS = ("if-none-match", "if-match")
HOP_BY_HOP = ("transfer-encoding", "connection", "content-length")


class FaultProxy:
    """A proxy in front of one endpoint, on a free loopback port."""

    def __init__(
        self,
        target: str,
        *,
        mix: Mapping[str, float] | None = None,
        seed: int = 0,
        dropped_headers: Iterable[str] = (),
        bytes_per_s: float | None = None,
    ) -> None:
        """Start to listen; `mix` maps a fault to its share of the requests that it fits.

        All bodies of replies together come at `bytes_per_s`, where it is given.
        """
        address = urlsplit(target)
        self.upstream = (str(address.hostname), int(address.port or 80))
        self.dropped_headers = {name.lower() for name in dropped_headers}
        self.counts: Counter[str] = Counter()
        self._bytes_per_s, self._free_s = bytes_per_s, 0.0
        self._mix, self._random = dict(mix or {}), random.Random(seed)
        self._forced: deque[tuple[str, str]] = deque()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def force(self, fault: str, *, method: str, times: int = 1) -> None:
        """Make the next requests of a method, in order, meet a fault."""
        with self._lock:
            self._forced.extend([(method, fault)] * times)

    def pick(self, method: str, *, conditional: bool) -> str:
        """Return and count the fault of a request."""
        with self._lock:
            fault = self._next(method, conditional)
            self.counts[fault] += 1
            return fault

    def wait_for_line(self, size: int) -> None:
        """Wait until the line has carried so many bytes, behind those that came before."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + size / self._bytes_per_s
            wait_s = self._free_s - time.monotonic()
        time.sleep(max(wait_s, 0.0))

    def close(self) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, method: str, conditional: bool) -> str:
        if self._forced and self._forced[0][0] == method:
            return self._forced.popleft()[1]
        draw = self._random.random()
        for fault, share in self._mix.items():
            fits = {TRUNCATE: method == "GET", CONFLICT: conditional}.get(fault, True)
            if fits and draw < share:
                return fault
            draw -= share if fits else 0.0
        return NONE


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that are killed, or that time out, reset their connections."""


class _Dripping(io.BufferedIOBase):
    """Writes byte by byte."""

    def __init__(self, file: Any) -> None:
        """Write to a file."""
        self.file = file

    def write(self, data: Any) -> int:
        """Write all of it in its own time."""
        for value in bytes(data):
            self.file.write(bytes([value]))
            time.sleep(DRIP_S)
        return len(data)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def handle_any(self) -> None:
        """Answer one request: an error, a cut connection or the reply of the store."""
        body = self._read_body()
        conditional = any(name in self.headers for name in PRECONDITIONS)
        fault = self.proxy.pick(self.command, conditional=conditional and self.command == "PUT")
        if fault in ERRORS:
            return self._send_error_reply(*ERRORS[fault])
        if fault == RESET_BEFORE:
            return self._cut()
        reply, data = self._forward(body)
        if fault == RESET_AFTER:
            return self._cut()
        self._send_reply(reply, data, fault)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        raw, size = b"", 1
        while size:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            raw += line + self.rfile.read(size + 2)
        return raw

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.proxy.upstream, timeout=30)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in self.proxy.dropped_headers:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            reply = connection.getresponse()
            return reply, reply.read()
        finally:
            connection.close()

    def _send_reply(self, reply: http.client.HTTPResponse, data: bytes, fault: str) -> None:
        file, truncate = self.wfile, fault == TRUNCATE
        self.proxy.wait_for_line(len(data))
        if fault == DRIP and not data:
            self.wfile = _Dripping(file)
        self.send_response_only(reply.status)
        data = DAMAGES.get(fault, bytes)(data)
        length = str(len(data))
        for name, value in reply.getheaders():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if fault in DAMAGES and name.lower().startswith("x-amz-checksum"):
                continue
            if fault == OTHER_DIGIT and name.lower() == "etag":
                continue
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == DRIP and data:
            self.wfile = _Dripping(file)
        self.wfile.write(data[: len(data) // 2] if truncate else data)
        self.wfile = file
        if truncate:
            self._cut()

    def _send_error_reply(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


def _handler(proxy: FaultProxy) -> type[_Handler]:
    methods = dict.fromkeys(
        ("do_GET", "do_PUT", "do_POST", "do_HEAD", "do_DELETE"), _Handler.handle_any
    )
    return type("Handler", (_Handler,), {"proxy": proxy, **methods})
