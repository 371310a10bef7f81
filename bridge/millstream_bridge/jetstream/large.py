"""Large records put together again; what is stored of them is told in `records.chunks`."""

import asyncio
from collections.abc import AsyncIterator, Mapping as AbcMapping
from contextlib import asynccontextmanager

from ..errors import ConnectionLost, Unreachable
from ..model import Route
from ..records.chunks import Reference, is_chunk, reference_in
from ..records.headers import LARGE_HEADER, SOURCE_HEADER, HeaderError, NatsHeaders, SourceHeader
from ..records.mapping import Mapping
from .connection import Connection
from .objects import Objects
from .stream import Stream
from .target import NatsTarget

_AT_ONCE = 8


class LargeValues:
    """Reads the values of large records of one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def whole(
        self, seq: int, headers: NatsHeaders, payload: bytes
    ) -> tuple[NatsHeaders, bytes]:
        """Headers and payload as if the record had been one message; most are, and come back so.

        HeaderError: what is stored is not all there, or not what was moved. ConnectionLost.
        """
        reference = reference_in(headers)
        if reference is None:
            return headers, payload
        source = SourceHeader.parse(dict(headers).get(SOURCE_HEADER, ""))
        if reference.chunks:
            value = await self._chunks(seq, source, reference)
        else:
            value = await self._object(reference)
        rest = [header for header in headers if header[0] != LARGE_HEADER]
        return rest, reference.check(value)

    async def value(self, seq: int, headers: AbcMapping[str, str] | None, payload: bytes) -> bytes:
        """The whole value of a message as any client has it; errors as `whole`."""
        return (await self.whole(seq, list((headers or {}).items()), payload))[1]

    async def _object(self, reference: Reference) -> bytes:
        objects = Objects(self._stream.connection, reference.bucket)
        try:
            value = await objects.get(reference.name)
        except ValueError as error:
            raise HeaderError(str(error)) from error
        if value is None:
            raise HeaderError(f"bucket {reference.bucket} has no object {reference.name}")
        return value

    async def _chunks(self, seq: int, source: SourceHeader, reference: Reference) -> bytes:
        places = range(seq - reference.chunks, seq)
        parts: list[bytes] = []
        for start in range(0, len(places), _AT_ONCE):
            parts += await asyncio.gather(
                *[self._chunk(place, source) for place in places[start : start + _AT_ONCE]]
            )
        return b"".join(parts)

    async def _chunk(self, seq: int, source: SourceHeader) -> bytes:
        message = await self._stream.message(seq)
        if message is None or not is_chunk(message.headers, source):
            raise HeaderError(
                f"seq {seq} of stream {self._stream.name} is no piece of topic {source.topic}"
                f" partition {source.kafka_partition} offset {source.offset}"
            )
        return message.payload


@asynccontextmanager
async def open_large_values(nats: str | NatsTarget, route: Route) -> AsyncIterator[LargeValues]:
    """For who reads a route's stream: large values, over a connection of its own; Unreachable."""
    connection = await Connection.open(nats, name=f"millstream large values {route.name}")
    try:
        yield LargeValues(Stream(connection, Mapping(route)))
    except ConnectionLost as lost:
        raise Unreachable("JetStream", connection.url, str(lost)) from lost
    finally:
        await connection.close()
