"""Requests to one or several HTTP servers: bounded, repeated, and passed on where a server fails.

Promises: a server works on `concurrency` requests at most; it is checked before its first request
and after every failure; a reply is believed only after its reader did. An API key is in no message.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.engines.server.client import (
    FIRST_PAUSE_S,
    MOST_BYTES,
    BadReply,
    PassingFault,
    Server,
    ServerHttp,
)
from pipeline.store import interrupts
from schemas.config.engines import ServerSection
from schemas.errors import DataError, StorageError
from schemas.foreign import excerpt

T = TypeVar("T")

POLL_S = 0.05


@dataclass(frozen=True)
class Request(Generic[T]):
    """What is asked: a path and a body for a server, and the reader of its reply."""

    make: Callable[[Server], tuple[str, dict[str, Any]]]
    read: Callable[[bytes], T]
    """Raises BadReply for what cannot be right."""
    limit: int = MOST_BYTES
    """Most bytes of the reply."""


Check = Callable[[ServerHttp, Server], Awaitable[None]]


class ServerPool:
    """The servers of a section, with connections that are held until it is closed."""

    def __init__(
        self,
        urls: Sequence[str],
        section: ServerSection,
        *,
        key: str | None,
        check: Check,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember the servers; nothing is asked yet.

        Args:
            urls: their base URLs.
            section: limits and patience.
            key: API key that they ask for.
            check: makes sure that a server is the right one, and fills in what it is.
            alive: raises where a server that fails is known not to come back.
        """
        self.servers = [Server(url.rstrip("/")) for url in urls]
        self._section, self._check = section, check
        connections = (section.concurrency + 1) * len(urls)
        self._http = ServerHttp(section, key=key, connections=connections, alive=alive)
        self._runner, self._open = asyncio.Runner(), True

    def ask(self, requests: Sequence[Request[T]]) -> list[T]:
        """Return the replies to requests, in their order, as their readers give them.

        Raises:
            ConfigError: the servers refuse the key, the model or a request.
            DataError: two replies to a request cannot be right.
            StorageError: no server answered for `retry_s`.
        """
        return self._runner.run(self._all(requests))

    def settle(self, *, again: bool = False) -> None:
        """Check every server that answers; those that were checked too, where asked for.

        Raises:
            ConfigError, IdentityError: one is not the right one.
            DataError: one answers what cannot be right.
            StorageError: no server answered for `retry_s`.
        """
        for server in self.servers:
            server.checked = server.checked and not again
        self._runner.run(self._settle())

    def close(self) -> None:
        """End all connections; a second time, do nothing."""
        if self._open:
            self._open = False
            self._runner.run(self._http.close())
            self._runner.close()

    async def _settle(self) -> None:
        begin = time.monotonic()
        while True:
            found = await asyncio.gather(
                *(self._ready(server) for server in self.servers), return_exceptions=True
            )
            for server, error in zip(self.servers, found, strict=True):
                if isinstance(error, BadReply):
                    raise DataError(f"{server.url} {excerpt(str(error))}") from error
                if error is not None and not isinstance(error, PassingFault):
                    raise error
            if any(error is None for error in found):
                return
            self._give_up(begin, str(found[0]))
            interrupts.check()
            await asyncio.sleep(min(server.pause_s for server in self.servers))

    async def _all(self, requests: Sequence[Request[T]]) -> list[T]:
        found: dict[int, T] = {}
        todo: Iterator[tuple[int, Request[T]]] = iter(enumerate(requests))

        async def work() -> None:
            for index, request in todo:
                found[index] = await self._one(request)
                interrupts.beat()

        count = min(len(requests), self._section.concurrency * len(self.servers))
        tasks = [asyncio.create_task(work()) for _ in range(count)]
        try:
            await _watched(asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [found[index] for index in range(len(requests))]

    async def _one(self, request: Request[T]) -> T:
        failing_since: float | None = None
        refused: Server | None = None
        while True:
            server = await self._free(refused)
            try:
                await self._ready(server)
                reply = await self._http.post(server, *request.make(server), limit=request.limit)
                found = request.read(reply)
                server.pause_s = FIRST_PAUSE_S
                return found
            except PassingFault as error:
                failing_since = failing_since or time.monotonic()
                self._give_up(failing_since, str(error))
            except BadReply as error:
                if refused is not None:
                    raise DataError(
                        f"{server.url} {excerpt(str(error))}; {refused.url} had failed before. "
                        "Nothing was stored. Check the server's version, its logs and what stands "
                        "between"
                    ) from error
                refused = server
            finally:
                server.in_flight -= 1

    async def _free(self, avoid: Server | None) -> Server:
        """Return the least busy server that is up, and count a request of it."""
        while True:
            now, limit = time.monotonic(), self._section.concurrency
            free = [s for s in self.servers if s.down_until <= now and s.in_flight < limit]
            if free:
                server = min(free, key=lambda s: (s is avoid, s.in_flight))
                server.in_flight += 1
                return server
            await asyncio.sleep(POLL_S)

    async def _ready(self, server: Server) -> None:
        """Make sure that a server was checked since it failed last."""
        async with server.lock:
            if not server.checked:
                await self._check(self._http, server)
                server.checked = True

    def _give_up(self, since: float, last: str) -> None:
        if time.monotonic() - since > self._section.retry_s:
            urls = ", ".join(server.url for server in self.servers)
            raise StorageError(
                f"no model server answered for {self._section.retry_s:g} s ({urls}), last with "
                f"{last}. Check that they are up and run the same command again: what is committed "
                "stays"
            )


async def _watched(work: asyncio.Future[Any]) -> None:
    """Wait for work, and end the wait where a signal came."""
    while not work.done():
        await asyncio.wait([work], timeout=interrupts.POLL_S)
        interrupts.check()
    await work
