"""A client that speaks the wire protocol in bytes, for tests that compare transcripts.

It parses only as much as is needed to cut the stream into operations: a MSG or HMSG comes with its
payload, everything else is one line. The server's own PINGs are answered and left out, so a slow
machine does not change a transcript. ::

    async with RawClient.open(server.port) as client:
        await client.send(b"PUB FRONT.DOOR 11\\r\\nKnock Knock\\r\\n")
        await client.expect(b"+OK\\r\\n")
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

TIMEOUT_S = 10.0
QUIET: Mapping[str, object] = {
    "verbose": False,
    "pedantic": False,
    "headers": True,
    "no_responders": True,
}
"""CONNECT options of an ordinary client: no +OK, headers on."""


class RawClient:
    """One connection. ``info`` is the newest INFO the server sent, ``infos`` are all of them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self.info_line = b""
        self.infos: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, port: int, connect: Mapping[str, object] | None = None
    ) -> AsyncIterator["RawClient"]:
        """Connect and read INFO; with ``connect`` send CONNECT with these options, too."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = cls(reader, writer)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await client._await_info()
            if connect is not None:
                await client.send(b"CONNECT " + json.dumps(dict(connect)).encode() + b"\r\n")
            yield client
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @property
    def info(self) -> dict[str, Any]:
        return self.infos[-1]

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def operation(self, timeout_s: float = TIMEOUT_S) -> bytes:
        """The next operation with its CRLF, and payload if it has one; empty at end of stream.

        Nothing is lost when this is cancelled or runs out of time (TimeoutError).
        """
        async with asyncio.timeout(timeout_s):
            while True:
                operation = await self._next()
                if operation == b"PING\r\n":
                    await self.send(b"PONG\r\n")
                elif operation.startswith(b"INFO "):
                    self._note_info(operation)
                else:
                    return operation

    async def expect(self, wanted: bytes) -> None:
        """The next bytes are exactly ``wanted`` (which ends where an operation ends)."""
        got = b""
        while len(got) < len(wanted):
            part = await self.operation()
            got += part
            if not part:
                break
        assert got == wanted, f"expected {wanted!r}, got {got!r}"

    async def flush(self) -> bytes:
        """PING, and everything that came before its PONG. Raises EOFError if the server closed."""
        await self.send(b"PING\r\n")
        got = b""
        while True:
            part = await self.operation()
            if part == b"PONG\r\n":
                return got
            if not part:
                raise EOFError(f"closed after {got!r}")
            got += part

    async def until_closed(self) -> bytes:
        """Everything up to the end of the stream: what a dying connection still says."""
        got = b""
        while part := await self.operation():
            got += part
        return got

    async def end(self) -> None:
        """Half-close: the server sees end of file, what it still sends can be read."""
        self._writer.write_eof()
        await self._writer.drain()

    async def _await_info(self) -> None:
        first = await self._next()
        if not first.startswith(b"INFO "):
            raise EOFError(f"no INFO, but {first!r}")
        self._note_info(first)

    async def _next(self) -> bytes:
        while True:
            size = self._complete()
            if size:
                operation = bytes(self._buffer[:size])
                del self._buffer[:size]
                return operation
            try:
                data = await self._reader.read(1 << 18)
            except ConnectionResetError:
                # A peer that closes with our bytes unread resets: to the test that is a close.
                data = b""
            if not data:
                rest, self._buffer = bytes(self._buffer), bytearray()
                return rest
            self._buffer += data

    def _complete(self) -> int:
        """How many bytes the first whole operation in the buffer takes; 0 when it is not whole."""
        end = self._buffer.find(b"\n") + 1
        if not end:
            return 0
        words = self._buffer[:end].split()
        if words and bytes(words[0]) in (b"MSG", b"HMSG"):
            end += int(words[-1]) + 2
        return end if len(self._buffer) >= end else 0

    def _note_info(self, line: bytes) -> None:
        self.info_line = line
        self.infos.append(json.loads(line.removeprefix(b"INFO ")))
