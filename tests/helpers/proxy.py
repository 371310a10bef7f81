"""A TCP proxy between one client and its server, for cutting the client off in every way. ::

    async with Proxy([server.url]) as proxy:
        client = await nats.connect(proxy.url)
        proxy.cut()                # connections reset, new ones too, until `release`
        proxy.stall()              # nothing flows, nothing breaks
        proxy.stall(down=False)    # the client is mute, but hears
        proxy.delay(0.05)          # everything comes later
        proxy.release()            # what was held back flows again, in order

Each new connection goes to the first of the targets that takes it, so one proxy stands before a
whole cluster. A stalled connection is read no further than a buffer, so the sender notices in the
end as it would on a dead network.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with RST."""


class Proxy:
    """One listener on 127.0.0.1; an async context manager, on one loop."""

    def __init__(self, targets: Sequence[str]) -> None:
        """``targets``: URLs of servers, in the order in which they are tried."""
        self._targets = [urlsplit(target) for target in targets]
        self._server: asyncio.Server | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._delay_s = 0.0
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.num_open = 0
        """Connections that go through now."""
        self.num_refused = 0
        """Connections that came while it was cut."""

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset all connections and every new one."""
        self._is_cut = True
        for writer in self._writers:
            _reset(writer)

    def stall(self, *, up: bool = True, down: bool = True) -> None:
        """Let nothing through from the client (``up``), to it (``down``), or both."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def delay(self, seconds: float) -> None:
        """Hold each piece back so long, in both directions."""
        self._delay_s = seconds

    def release(self) -> None:
        """Let everything through again."""
        self._is_cut = False
        self._delay_s = 0.0
        self._up.set()
        self._down.set()

    async def __aenter__(self) -> Self:
        self.release()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        self._up.set()
        self._down.set()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # one that was just accepted gets its handler a round later
        while self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self._writers.add(writer)
        behind = None
        try:
            if self._is_cut:
                self.num_refused += 1
                return
            behind = await self._connect()
            if behind is None:
                return
            self._writers.add(behind[1])
            self.num_open += 1
            tasks = (
                asyncio.create_task(self._pump(reader, behind[1], self._up), name="up"),
                asyncio.create_task(self._pump(behind[0], writer, self._down), name="down"),
            )
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.num_open -= 1
                for one in tasks:
                    one.cancel()
                await asyncio.wait(tasks)
        finally:
            for end in (writer, *(behind[1:] if behind else ())):
                self._writers.discard(end)
                _reset(end)
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for target in self._targets:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(target.hostname, target.port)
                if not self._is_cut:
                    return reader, writer
                _reset(writer)
        return None

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await gate.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
