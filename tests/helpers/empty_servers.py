"""Servers that one test after the other gets as if each were its own: they begin empty.

To start one takes longer than many a test, so a server whose process a test left as it was is
emptied and given to the next. One that was killed, restarted or does not answer is replaced.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import nats
import nats.errors
import nats.js.errors
import pytest

from .servers import Server

ANSWER_S = 5


class EmptyServers:
    """At most one server of each kind; a context manager that ends them."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._idle: dict[str, Server] = {}

    @asynccontextmanager
    async def one(self, kind: str) -> AsyncIterator[Server]:
        """A server of that kind without streams, until the block ends."""
        server = self._idle.pop(kind, None)
        if server is None:
            server = Server(kind, self._folders.mktemp("nats"))
            await asyncio.to_thread(server.open)
        pid = server.pid
        try:
            yield server
        finally:
            if server.is_running and server.pid == pid and await _is_emptied(server):
                self._idle[kind] = server
            else:
                server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._idle.values():
            server.close()


async def _is_emptied(server: Server) -> bool:
    """Delete all streams; whether that could be done."""
    try:
        client = await nats.connect(server.url, connect_timeout=ANSWER_S, allow_reconnect=False)
        try:
            jetstream = client.jetstream(timeout=ANSWER_S)
            while streams := await jetstream.streams_info():
                for info in streams:
                    await jetstream.delete_stream(str(info.config.name))
        finally:
            await client.close()
    except (OSError, nats.errors.Error, nats.js.errors.Error):
        return False
    return True
