"""A stand-in for W&B's server: takes rows of figures where `wandb sync` puts them, and no files."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40
"""What stands for a key."""

HISTORY = "wandb-history.jsonl"


class FakeWandb(ThreadingHTTPServer):
    """The server; one run."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen at a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rows: list[dict[str, Any]] = []
        self.exists = False

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, operation: str | None, query: str) -> dict[str, Any]:
        """Return the data that a query asks for; nothing where it is not known."""
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": "opd", "bucket": self._run()}}
        if operation == "UpsertBucket":
            self.exists = True
            project = {"id": "p", "name": "opd", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": "told", "displayName": "told", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _run(self) -> dict[str, Any] | None:
        """Return what a resumed run is told of what there is."""
        if not self.exists:
            return None
        last = self.rows[-1] if self.rows else {}
        return {
            "id": "b",
            "name": "told",
            "displayName": "told",
            "config": "{}",
            "summaryMetrics": json.dumps({"_step": last.get("_step", 0)}),
            "historyLineCount": len(self.rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if last else []),
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWandb

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        if not self.path.endswith(("/graphql", "/file_stream")):
            self._reply({})  # how its own programs fare
        elif self.path.endswith("/graphql"):
            asked = json.loads(data)
            found = self.server.answer(asked.get("operationName"), asked.get("query", ""))
            self._reply({"data": found} if found else {"errors": [{"message": "not here"}]})
        else:
            piece = (json.loads(data).get("files") or {}).get(HISTORY)
            if piece:
                rows = [json.loads(line) for line in piece["content"]]
                self.server.rows[piece["offset"] : piece["offset"] + len(rows)] = rows
            self._reply({"exitcode": None, "limits": {}})

    def do_GET(self) -> None:
        self._reply({})

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_wandb() -> Iterator[FakeWandb]:
    """Give a server for the length of a block."""
    with FakeWandb() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
