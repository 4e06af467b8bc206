"""One request to an HTTP server, and what its failure means.

Promises: a fault that may pass, a refusal that the user must mend and a reply that cannot be right
are told apart; the API key is in no message.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from schemas.config.engines import ServerSection
from schemas.errors import ConfigError
from schemas.foreign import excerpt

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0

CONNECT_S = 10.0

IDLE_S = 2.0
"""Seconds that a connection is kept; vLLM's own end after 5."""

MOST_BYTES = 1 << 20
"""Bytes of a reply that holds no numbers of tokens."""

NOT_A_NUMBER = "not JSON compliant"
"""What a server says whose reply would hold a NaN."""

HTTP_OK, WRONG_METHOD = 200, 405


class BadReply(Exception):
    """A reply that cannot be right, in words."""


class PassingFault(Exception):
    """A fault that may pass, in words."""


@dataclass
class Server:
    """One server, and how it does."""

    url: str
    compact: bool = False
    """Whether it has the endpoint that takes token ids and gives token ids."""
    model: str = ""
    """Name under which it lists the model."""
    checked: bool = False
    in_flight: int = 0
    down_until: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def failed(self) -> None:
        """Leave it alone for a while, longer from time to time, and check it again then."""
        self.checked = False
        now = time.monotonic()
        if now < self.down_until:
            return  # a request that began before it failed
        self.down_until = now + self.pause_s * random.uniform(0.5, 1.0)
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)


class ServerHttp:
    """Connections to some servers."""

    def __init__(
        self,
        section: ServerSection,
        *,
        key: str | None,
        connections: int,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember the settings; nothing is asked yet.

        Args:
            section: time-outs, and the name of the key's variable.
            key: API key that the servers ask for.
            connections: most of them at once.
            alive: raises where a server that fails is known not to come back.
        """
        self._section, self._key = section, key
        self._connections, self._alive = connections, alive
        self._session: aiohttp.ClientSession | None = None

    async def get(self, server: Server, path: str) -> Any:
        """Return the JSON at a path of a server.

        Raises:
            BadReply: it is no JSON.
            ConfigError: the server refuses.
            PassingFault: the server does not answer, or not now.
        """
        data = await self._answered(server, "GET", path, None, MOST_BYTES)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadReply(f"answered {path} with what is no JSON") from error

    async def post(
        self, server: Server, path: str, body: dict[str, Any], *, limit: int = MOST_BYTES
    ) -> bytes:
        """Return a server's reply to a body, of at most so many bytes; raises as `get`."""
        return await self._answered(server, "POST", path, body, limit)

    async def takes(self, server: Server, path: str) -> bool:
        """Return whether a server has a path that takes bodies."""
        status, _ = await self._send(server, "GET", path, None, MOST_BYTES)
        return status == WRONG_METHOD

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()

    async def _answered(
        self, server: Server, method: str, path: str, body: dict[str, Any] | None, limit: int
    ) -> bytes:
        status, data = await self._send(server, method, path, body, limit)
        if status == HTTP_OK:
            return data
        raise self._refusal(server, path, status, data.decode(errors="replace"))

    async def _send(
        self, server: Server, method: str, path: str, body: dict[str, Any] | None, limit: int
    ) -> tuple[int, bytes]:
        try:
            async with self._opened().request(
                method, server.url + path, json=body, allow_redirects=False
            ) as reply:
                return reply.status, await _bounded(reply, path, limit)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            server.failed()
            self._alive()
            told = "no reply in time" if isinstance(error, TimeoutError) else str(error)
            raise PassingFault(f"{server.url}: {excerpt(told) or type(error).__name__}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            wait_s = self._section.timeout_s
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=IDLE_S)
            timeout = aiohttp.ClientTimeout(total=wait_s, sock_connect=min(CONNECT_S, wait_s))
            headers = {"Accept-Encoding": "identity"}  # few bytes can unpack to any number
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=headers, auto_decompress=False
            )
        return self._session

    def _refusal(self, server: Server, path: str, status: int, text: str) -> Exception:
        """Return the error for a status: one that may pass, or one of the configuration."""
        if self._key:
            text = text.replace(self._key, "…")
        where, said = f"{server.url}{path}", f"status {status}: {excerpt(_message(text))}"
        if NOT_A_NUMBER in text:
            return BadReply(f"could not write its numbers as JSON, for one is a NaN ({said})")
        if status == 429 or status >= 500:
            server.failed()
            return PassingFault(f"{where}: {said}")
        if status in (401, 403):
            name = self._section.api_key_env
            hint = (
                "set server.api_key_env" if name is None else f"check ${name}, which holds the key"
            )
            return ConfigError(f"{where} refuses the API key ({said}): {hint}")
        return ConfigError(f"{where} refuses the request ({said})")


def api_key(section: ServerSection) -> str | None:
    """Return the key that a section's variable holds, or None where it names none.

    Raises:
        ConfigError: the variable is empty.
    """
    if section.api_key_env is None:
        return None
    key = os.environ.get(section.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"server.api_key_env names ${section.api_key_env}, which is not set: export it, or "
            "remove the key from the configuration"
        )
    return key


def _message(text: str) -> str:
    """Return the message of a server's error, or its text where it has none."""
    try:
        found = json.loads(text)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text.strip()


async def _bounded(reply: aiohttp.ClientResponse, path: str, limit: int) -> bytes:
    """Return the bytes of a reply; of a refusal, which is only told, the first ones.

    Raises:
        BadReply: they are more than can be right, or compressed.
    """
    packed = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if packed != "identity":
        raise BadReply(f"compressed its answer to {path} ({packed}), which was not asked for")
    parts, size = [], 0
    async for part in reply.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit and reply.status == HTTP_OK:
            reply.close()
            raise BadReply(f"sent more than {limit} bytes for {path}, which cannot be right")
        if size > limit:
            reply.close()
            break
    return b"".join(parts)[:limit]
