"""A store that gives every request the same answer: a refusal of S3, with any headers."""

import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any


class AnswerServer:
    """The store, on a free loopback port for the length of a block; gives its URL."""

    def __init__(
        self,
        status: int,
        code: str,
        headers: Mapping[str, str],
        *,
        certificate: Path | None = None,
    ) -> None:
        """Begin to listen; `certificate`, with its key, makes it speak TLS."""
        self._server = _Quiet(("127.0.0.1", 0), _handler(status, code, headers))
        scheme = "http"
        if certificate is not None:
            scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> str:
        """Return the URL."""
        return self._url

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that refuse a certificate end the connection."""


def _handler(status: int, code: str, headers: Mapping[str, str]) -> type[BaseHTTPRequestHandler]:
    body = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Type": "application/xml", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    return Handler
