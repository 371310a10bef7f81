"""Records that were parked: kept whole, shown, repaired, replayed, dropped.

A route that parks keeps each record it cannot move in an Object Store bucket of its own,
``MILLSTREAM_PARKED_<route>``, as ``<partition>/<offset>``: any size, and readable with any NATS
client. A mark in the stream stands in its place (see `stand_in`).

A replay publishes the record at the end of the stream, under its own subject and with its own
source, marked with the flag ``r`` because it is not in its place: later records of its key went
ahead. It is then no longer parked. Whatever kills a replay, the next one finds what the stream has
already and stores nothing twice. A dense stream has no place for a replay: its sequences are
offsets.
"""

from collections.abc import Mapping as AbcMapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from ..errors import ConfigurationError, PoisonRecord, RecordError
from ..jetstream.connection import Connection, parse_answer
from ..jetstream.objects import ObjectInfo, Objects
from ..jetstream.reader import read_stream
from ..jetstream.stream import Stream
from ..model import Piece, Record
from ..records.chunks import HEADER_BYTES_RESERVED
from ..records.frames import Frames
from ..records.headers import (
    HEADER_BLOCK_BYTES_MAX,
    REPLAYED,
    SOURCE_HEADER,
    HeaderError,
    SourceHeader,
    lines_of,
)
from ..records.mapping import Mapping
from ..records.template import SubjectError
from .large import large_object

_REASON, _REPAIRED = "reason", "repaired"


class Parked(NamedTuple):
    """What is known of a parked record without reading it. ``bytes`` is its stored size."""

    kafka_partition: int
    offset: int
    reason: str
    parked_at: datetime
    bytes: int
    is_repaired: bool


class ParkedRecords:
    """The parked records of one route.

    All of it may raise ConnectionLost, and ConfigurationError where JetStream refuses a request.
    """

    def __init__(self, connection: Connection, mapping: Mapping) -> None:
        self._connection = connection
        self._mapping = mapping
        route = mapping.route
        self._objects = Objects(
            connection,
            f"MILLSTREAM_PARKED_{route.name}",
            storage=route.storage,
            replicas=route.replicas,
        )

    async def park(self, record: Record, reason: str) -> None:
        """Keep a record. One that is there already stays as it is: it may have been repaired."""
        name = _name(record.kafka_partition, record.offset)
        if await self._objects.info(name) is None:
            await self._put(record, {_REASON: reason})

    async def list(self) -> Sequence[Parked]:
        """All that is parked, by partition and offset."""
        found = [_parked(info) for info in await self._objects.list()]
        return sorted(found, key=lambda it: (it.kafka_partition, it.offset))

    async def get(self, kafka_partition: int, offset: int) -> tuple[Parked, Record]:
        """One record; ConfigurationError: it is not parked."""
        name = _name(kafka_partition, offset)
        info, data = await self._objects.info(name), await self._objects.get(name)
        if info is None or data is None:
            raise self._is_not_parked(kafka_partition, offset)
        return _parked(info), msgspec.msgpack.decode(data, type=Record)

    async def repair(self, record: Record) -> None:
        """Put a record in place of the parked one of its partition and offset."""
        parked, _ = await self.get(record.kafka_partition, record.offset)
        await self._put(record, {_REASON: parked.reason, _REPAIRED: "yes"})

    async def drop(self, kafka_partition: int, offset: int) -> None:
        """Forget a parked record for good; its mark stays."""
        if not await self._objects.delete(_name(kafka_partition, offset)):
            raise self._is_not_parked(kafka_partition, offset)

    async def replay(self, kafka_partition: int, offset: int) -> int:
        """Publish a parked record; the sequence it has now.

        ConfigurationError: it is not parked, its mark is not stored yet, or the route is dense.
        PoisonRecord: it still cannot be moved; repair it first.
        """
        route = self._mapping.route
        if route.mode == "dense":
            raise ConfigurationError(
                f"route {route.name}: a dense stream has no place for a replay: its sequences are"
                " offsets; a reader can take the record from `parked show`"
            )
        _, record = await self.get(kafka_partition, offset)
        stream = Stream(self._connection, self._mapping)
        await stream.ensure(may_create=False)
        mark = await stream.last_of(f"{self._mapping.poison_subject(kafka_partition)}.{offset}")
        if mark is None:
            raise ConfigurationError(
                f"topic {route.topic} partition {kafka_partition} offset {offset}: the bridge has"
                " not passed it yet"
            )
        piece = await self._piece(record, stream.message_bytes_max)
        seq = await self._stored_at(piece.subject, record, mark.seq, await stream.last_seq())
        if seq is None:
            seq = await self._publish(piece, record)
        await self._objects.delete(_name(kafka_partition, offset))
        return seq

    async def _piece(self, record: Record, bytes_max: int) -> Piece:
        """The message of a replay; PoisonRecord: it cannot be one."""
        route = self._mapping.route
        try:
            subject = self._mapping.subject(record)
        except SubjectError as error:
            raise self._needs_repair(record, str(error)) from error
        piece = Piece(subject, self._mapping.header_lines(record), record.value or b"")
        if len(piece.lines) + len(piece.payload) + HEADER_BYTES_RESERVED > bytes_max:
            if route.large == "refuse":
                raise self._needs_repair(record, f"it is over the limit of {bytes_max} bytes")
            piece = await large_object(self._connection, self._mapping, record)
        if len(piece.lines) + HEADER_BYTES_RESERVED > HEADER_BLOCK_BYTES_MAX:
            raise self._needs_repair(record, f"its headers are over {HEADER_BLOCK_BYTES_MAX} bytes")
        return piece._replace(lines=_replayed(piece.lines))

    async def _stored_at(
        self, subject: str, record: Record, after: int, last_seq: int
    ) -> int | None:
        """Where an earlier replay, which did not come to its end, stored the record."""
        topic = self._mapping.route.topic
        found = None
        async for messages in read_stream(
            self._connection,
            self._mapping.route.stream,
            subject,
            first_seq=after + 1,
            last_seq=last_seq,
        ):
            for seq, message in messages:
                headers = dict(lines_of(message.block))
                try:
                    source = SourceHeader.parse(headers.get(SOURCE_HEADER, ""))
                except HeaderError:
                    continue
                here = (source.topic, source.kafka_partition, source.offset)
                wanted = (topic, record.kafka_partition, record.offset)
                if here == wanted and REPLAYED in source.flags:
                    found = seq
        return found

    async def _publish(self, piece: Piece, record: Record) -> int:
        route = self._mapping.route
        frames = Frames(self._mapping, self._connection.max_payload)
        message_id = _message_id(route.name, record)
        answer = parse_answer(
            await self._connection.publish_and_wait(
                lambda reply: frames.piece(piece, message_id, reply)
            )
        )
        if refusal := answer.get("error"):
            raise RecordError(
                route.topic,
                record.kafka_partition,
                record.offset,
                f"the server refuses it: {refusal.get('description')}",
            )
        return int(answer["seq"])

    async def _put(self, record: Record, metadata: AbcMapping[str, str]) -> None:
        await self._objects.put(
            _name(record.kafka_partition, record.offset),
            msgspec.msgpack.encode(record),
            description=f"topic {self._mapping.route.topic}",
            metadata=metadata,
        )

    def _needs_repair(self, record: Record, reason: str) -> PoisonRecord:
        topic = self._mapping.route.topic
        return PoisonRecord(
            topic, record.kafka_partition, record.offset, f"{reason}; repair it first"
        )

    def _is_not_parked(self, kafka_partition: int, offset: int) -> ConfigurationError:
        route = self._mapping.route
        return ConfigurationError(
            f"route {route.name}: topic {route.topic} partition {kafka_partition} offset {offset}"
            " is not parked"
        )


def _name(kafka_partition: int, offset: int) -> str:
    return f"{kafka_partition}/{offset}"


def _parked(info: ObjectInfo) -> Parked:
    partition, _, offset = info.name.partition("/")
    return Parked(
        int(partition),
        int(offset),
        info.metadata.get(_REASON, ""),
        datetime.fromisoformat(info.mtime),
        info.size,
        _REPAIRED in info.metadata,
    )


def _message_id(route: str, record: Record) -> str:
    """Stops a second copy that is published at the same moment."""
    return f"Nats-Msg-Id: replay-{route}-{record.kafka_partition}-{record.offset}\r\n"


def _replayed(lines: str) -> str:
    """Header lines with the flag for a record that is not in its place."""
    first, rest = lines.split("\r\n", 1)
    source = SourceHeader.parse(first.removeprefix(f"{SOURCE_HEADER}: "))
    source = source._replace(flags=f"{source.flags}{REPLAYED}")
    return f"{SOURCE_HEADER}: {source.text}\r\n{rest}"
