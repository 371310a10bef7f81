"""A client that speaks bytes over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

TIMEOUT_S = 10.0


class Raw:
    """Reads are bounded in time: a test that waits for what never comes fails."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.info: dict[str, Any] = {}

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self, expected: bytes) -> bytes:
        """As many bytes as are expected, or what came before the end."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                return await self.reader.readexactly(len(expected))
            except asyncio.IncompleteReadError as error:
                return error.partial

    async def line(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.readline()

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read()

    def stop_reading(self) -> None:
        """Leave everything in the socket from now on."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    async def sync(self) -> None:
        """PING, and wait for the PONG: what was sent before is through."""
        self.send(b"PING\r\n")
        assert await self.line() == b"PONG\r\n"


@asynccontextmanager
async def connect(port: int, *sent: bytes) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = Raw(reader, writer)
    try:
        line = await raw.line()
        assert line.startswith(b"INFO {")
        assert line.endswith(b"} \r\n")
        raw.info = json.loads(line[5:])
        raw.send(b"".join(sent))
        yield raw
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
