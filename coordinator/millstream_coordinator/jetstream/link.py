"""Whether a connection is up, and what waits for an answer on it ends when it breaks.

nats-py tells only one callback, the user's own, that a connection broke, and lets a request wait to
its end for an answer that cannot come. A worker's lane would stand still for as long. So the
connection is looked at while something waits, and never else: each request costs a timeout that is
not set.

It may break and be back between two looks, so how often it came back is compared. And what comes
over the next connection says nothing about the one before: a no-responders tells who is there now.

What is not permitted gets no answer either; the server says so beside it, on the connection, which
keeps the last that it said. So that is looked at, too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from nats.aio.client import Client

_CHECK_INTERVAL_S = 0.05


class LinkBroken(Exception):
    """The connection on which something was asked is gone; the answer cannot come."""


class NotPermitted(Exception):
    """The server has said that what was asked is not permitted; no answer will come."""


class _Asked(NamedTuple):
    """What waits for an answer, and how the connection was when it asked."""

    reconnects: int
    last_error: Exception | None
    is_refused: Callable[[Exception], bool] | None


class Link:
    """One connection's comings and goings, for what asks on it in one event loop."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._waiting: dict[asyncio.Timeout, _Asked] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_up(self) -> bool:
        return self._connection.is_connected

    @property
    def is_over(self) -> bool:
        """Whether it will not come back: it was closed, or its client gave up.

        A client does that after ``max_reconnect_attempts``: in nats-py, 60 if it is not told.
        """
        return self._connection.is_closed

    @property
    def reconnects(self) -> int:
        """How often the connection has come back."""
        return self._connection.stats["reconnects"]

    async def until_up(self, timeout_s: float) -> bool:
        """Wait until the connection is there; False if it is not within ``timeout_s``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self.is_up:
            if loop.time() >= deadline or self._connection.is_closed:
                return False
            await asyncio.sleep(_CHECK_INTERVAL_S)
        return True

    @asynccontextmanager
    async def held(
        self, is_refused: Callable[[Exception], bool] | None = None
    ) -> AsyncIterator[None]:
        """End the block with LinkBroken when the connection breaks, also if it came back since.

        ``is_refused`` tells which word of the server's ends it with NotPermitted.
        """
        scope = asyncio.timeout(None)
        asked = _Asked(self.reconnects, self._connection.last_error, is_refused)
        try:
            async with scope:
                if self._timer is None:
                    self._look_again()
                self._waiting[scope] = asked
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            is_broken = self.is_broken_since(asked.reconnects)
            raise (LinkBroken if is_broken else NotPermitted) from error
        finally:
            self._waiting.pop(scope, None)

    def is_broken_since(self, reconnects: int) -> bool:
        """Whether it is not the connection any more that had come back so often."""
        return not self.is_up or self.reconnects != reconnects

    def _is_refused(self, asked: _Asked) -> bool:
        error = self._connection.last_error
        if asked.is_refused is None or error is None or error is asked.last_error:
            return False
        return asked.is_refused(error)

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_CHECK_INTERVAL_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for scope, asked in list(self._waiting.items()):
            if self.is_broken_since(asked.reconnects) or self._is_refused(asked):
                del self._waiting[scope]
                scope.reschedule(now)
        if self._waiting:
            self._look_again()
