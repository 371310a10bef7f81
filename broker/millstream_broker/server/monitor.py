"""The monitoring port: ``/varz`` and ``/healthz`` for people and probes, small on purpose."""

import asyncio
import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import StartError
from ..protocol import core as message_core
from .options import VERSION, python_version

if TYPE_CHECKING:
    from .server import Broker

REQUEST_BYTES_MAX = 16 * 1024
REQUEST_TIMEOUT_S = 5.0


class Monitor:
    """HTTP/1.1, GET only, one request per connection."""

    def __init__(self, server: "Broker") -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str | None, port: int) -> None:
        """Open the port. Raises StartError."""
        try:
            self._listener = await asyncio.start_server(
                self._answer, host, port, limit=REQUEST_BYTES_MAX
            )
        except OSError as error:
            where = f"monitoring port {host}:{port}"
            raise StartError(where, os.strerror(error.errno or 0)) from error
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port, and the connections that have not asked anything yet."""
        if self._listener is not None:
            self._listener.close()
            for task in self._answering:
                task.cancel()
            if self._answering:
                await asyncio.wait(self._answering)
            await self._listener.wait_closed()
            self._listener = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        # Cancelled only by `close`; the stream server would report that as an unhandled exception.
        with suppress(asyncio.CancelledError):
            await self._exchange(reader, writer)
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.LimitOverrunError, ValueError, EOFError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = request.split(b" ", 2)
                writer.write(self._response(method, target.split(b"?")[0].decode("latin-1")))
                await writer.drain()

    def _response(self, method: bytes, path: str) -> bytes:
        if method != b"GET":
            return _http(405, "Method Not Allowed", "text/plain", b"")
        match path:
            case "/varz":
                body = json.dumps(self.varz(), indent=2).encode()
                return _http(200, "OK", "application/json", body)
            case "/healthz":
                return _http(200, "OK", "application/json", b'{"status":"ok"}')
            case "/":
                links = b'<a href="/varz">varz</a> <a href="/healthz">healthz</a>'
                return _http(200, "OK", "text/html", links)
            case _:
                return _http(404, "Not Found", "text/plain", b"404 page not found\n")

    def varz(self) -> dict[str, object]:
        """What the server is and has done, under nats-server's names."""
        server, options = self._server, self._server.options
        routes = server.account.routes
        routes.settle_counts()
        counts = routes.counts
        return {
            "server_id": server.server_id,
            "server_name": server.server_name,
            "version": VERSION,
            "go": python_version(),
            "core": message_core.NAME,
            "host": options.host,
            "port": server.port,
            "http_port": self.port,
            "auth_required": server.credentials.is_required,
            "max_connections": options.max_connections,
            "max_payload": options.max_payload,
            "max_pending": options.max_pending,
            "max_control_line": options.max_control_line,
            "ping_interval": int(options.ping_interval_s * 1e9),
            "ping_max": options.ping_max,
            "write_deadline": int(options.write_deadline_s * 1e9),
            "jetstream": {"config": {"store_dir": str(options.store_dir or "")}}
            if server.has_jetstream
            else {},
            "start": _time(server.started_wall_s),
            "now": _time(time.time()),
            "uptime": f"{int(time.time() - server.started_wall_s)}s",
            "connections": server.connection_count,
            "total_connections": server.total_connections,
            "subscriptions": server.account.subscription_count,
            "slow_consumers": server.slow_consumers,
            "stale_connections": server.stale_connections,
            "in_msgs": counts.in_messages,
            "out_msgs": counts.out_messages,
            "in_bytes": counts.in_bytes,
            "out_bytes": counts.out_bytes,
        }


def _time(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat().replace("+00:00", "Z")


def _http(code: int, reason: str, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
