"""Two pages over HTTP, ``/metrics`` and ``/healthz``: enough of HTTP/1.1 for a scraper and a probe.

Requests without a body, one answer each, and the connection closes. A request line or headers that
are too long, or do not come within REQUEST_S, end the connection; at most CONNECTIONS_MAX are open.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from ..errors import GroupError

logger = logging.getLogger(__name__)

REQUEST_S = 5.0
ANSWER_S = 10.0
HEAD_MAX_BYTES = 16_384
CONNECTIONS_MAX = 64
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MetricsPage = Callable[[], Awaitable[bytes]]
Health = Callable[[], tuple[bool, dict[str, object]]]

_Answer = tuple[HTTPStatus, str, bytes]


class Pages:
    """What is served. ``metrics`` makes the page; ``health`` says whether all is well and why."""

    def __init__(self, metrics: MetricsPage, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._open: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[str]:
        """Serve while the block runs; gives the URL, whose port is the real one for port 0.

        Raises GroupError when it cannot listen there.
        """
        try:
            server = await asyncio.start_server(self._accept, host, port, limit=HEAD_MAX_BYTES)
        except OSError as error:
            reason = error.strerror or str(error)
            raise GroupError(f"cannot serve HTTP on {host}:{port}: {reason}") from error
        address = server.sockets[0].getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        try:
            yield f"http://{shown}:{address[1]}"
        finally:
            server.close()
            for connection in self._open:
                connection.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve in a task of our own: streams of Python 3.11 complain of theirs if it is ended."""
        task = asyncio.create_task(self._connect(reader, writer), name="http connection")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._open) <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = await self._answer(head)
                is_head = head.startswith(b"HEAD ")
                writer.write(_encode(status, kind, body, is_head=is_head))
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            logger.debug("a connection ended early", extra={"event": "http_connection_ended"})
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> _Answer:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED)
        match path:
            case b"/metrics":
                try:
                    async with asyncio.timeout(ANSWER_S):
                        return HTTPStatus.OK, METRICS_TYPE, await self._metrics()
                except TimeoutError:
                    return _text(HTTPStatus.SERVICE_UNAVAILABLE)
            case b"/healthz":
                is_well, document = self._health()
                status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
                return status, "application/json", json.dumps(document).encode() + b"\n"
            case _:
                return _text(HTTPStatus.NOT_FOUND)


def _text(status: HTTPStatus) -> _Answer:
    return status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode()


def _encode(status: HTTPStatus, kind: str, body: bytes, *, is_head: bool) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")
    return head if is_head else head + body
