"""The proof: both sides of a route compared record by record.

For every partition the records between the low and the high watermark that Kafka had when the check
began are read from Kafka, and those with the same offsets from the stream. Each record becomes one
unambiguous string of bytes of everything it is (offset, timestamp and its type, key, value, headers
with order, repeats and nulls) and nothing of how it was moved: no sequence, no session. Blocks of
1,000 offsets are hashed; where a block differs it alone is read again from both sides and compared
record by record, so the first difference has an offset and a sequence.

The order in the stream is checked on the way: offsets must rise within a partition, so a repeated
record is found as one that does not. Records the stream has from before Kafka's low watermark
cannot be compared any more; they are counted. Messages without a source of the route are counted as
foreign.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from ..errors import ConnectionLost, Unreachable
from ..jetstream.connection import Connection, Message
from ..jetstream.reader import read_stream
from ..jetstream.stream import Stream
from ..jetstream.target import NatsTarget
from ..kafka.source import KafkaSource
from ..model import Difference, PartitionProof, Proof, Record, Route, Side, Watermarks
from ..records.headers import parse_block
from ..records.mapping import CHECKPOINT_TOKEN, Mapping

BLOCK_OFFSETS = 1_000
_POLL_RECORDS = 2_000
_POLL_S = 0.5
_SILENT_POLLS_MAX = 60


def canonical(record: Record) -> bytes:
    """Everything a record is, as bytes that no other record has."""
    key, value = record.key, record.value
    head = (
        f"{record.offset} {record.timestamp_ms} {record.timestamp_type}"
        f" {-1 if key is None else len(key)} {-1 if value is None else len(value)}"
        f" {len(record.headers)}\n"
    )
    if not record.headers:
        return b"".join((head.encode("ascii"), key or b"", value or b""))
    parts = [head.encode("ascii"), key or b"", value or b""]
    for name, content in record.headers:
        text = name.encode("utf-8", "surrogatepass")
        parts.append(b"%d %d\n" % (len(text), -1 if content is None else len(content)))
        parts += (text, content or b"")
    return b"".join(parts)


@dataclass(slots=True)
class Ledger:
    """One side of one partition, filled in stream order. Pure.

    `add` wants rising offsets. ``blocks`` holds a digest per block number, ``starts`` the sequence
    at which the stream's side of a block begins.
    """

    count: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    blocks: dict[int, bytes] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    _block: int = -1
    _parts: list[bytes] = field(default_factory=list)

    def add(self, record: Record, seq: int = 0) -> None:
        """The next record."""
        block = record.offset // BLOCK_OFFSETS
        if block != self._block:
            self._close_block()
            self._block = block
            self.starts[block] = seq
        self._parts.append(canonical(record))
        self.count += 1
        if self.first_offset is None:
            self.first_offset = record.offset
        self.last_offset = record.offset

    def side(self) -> Side:
        """The finished side."""
        self._close_block()
        whole = hashlib.blake2b(digest_size=16)
        for block, digest in self.blocks.items():
            whole.update(b"%d " % block + digest)
        return Side(
            count=self.count,
            first_offset=self.first_offset,
            last_offset=self.last_offset,
            digest=whole.hexdigest(),
        )

    def _close_block(self) -> None:
        if self._parts:
            self.blocks[self._block] = hashlib.blake2b(
                b"".join(self._parts), digest_size=16
            ).digest()
            self._parts = []


def first_different_block(kafka: Ledger, nats: Ledger) -> int | None:
    """The lowest block that is not the same on both sides; call after `Ledger.side`."""
    numbers = sorted(kafka.blocks.keys() | nats.blocks.keys())
    return next((n for n in numbers if kafka.blocks.get(n) != nats.blocks.get(n)), None)


def compare(
    kafka_partition: int, kafka: list[Record], nats: list[tuple[int, Record]]
) -> Difference | None:
    """The first difference between the records of a block on both sides, both in rising order."""
    stored = {record.offset: (seq, record) for seq, record in nats}
    for record in kafka:
        seq, other = stored.pop(record.offset, (None, None))
        if other is None:
            return Difference(
                kafka_partition=kafka_partition,
                offset=record.offset,
                seq=None,
                what="the stream does not have this record",
            )
        if canonical(record) != canonical(other):
            names = [
                name
                for name in ("key", "value", "headers", "timestamp_ms", "timestamp_type")
                if getattr(record, name) != getattr(other, name)
            ]
            return Difference(
                kafka_partition=kafka_partition,
                offset=record.offset,
                seq=seq,
                what=f"different {' and '.join(names)}",
            )
    for offset, (seq, _) in sorted(stored.items()):
        return Difference(
            kafka_partition=kafka_partition,
            offset=offset,
            seq=seq,
            what="the stream has a record that Kafka does not have",
        )
    return None


class StreamSide:
    """The stream's side of all partitions: messages into ledgers, and what cannot be. Pure."""

    def __init__(self, mapping: Mapping, marks: dict[int, Watermarks]) -> None:
        self._mapping = mapping
        self._marks = marks
        self.ledgers = {partition: Ledger() for partition in marks}
        self.differences: dict[int, Difference] = {}
        self.foreign = 0
        self.older = 0
        self._last = dict.fromkeys(marks, -1)

    def add(self, seq: int, message: Message) -> None:
        """The next message of the route's subjects."""
        headers = parse_block(message.block)[1] if message.block else []
        source = self._mapping.source_in(headers)
        if source is None or source.kafka_partition not in self._marks:
            self.foreign += f".{CHECKPOINT_TOKEN}." not in message.subject
            return
        partition, offset = source.kafka_partition, source.offset
        if partition in self.differences:
            return
        mark = self._marks[partition]
        if offset <= self._last[partition]:
            before = self._last[partition]
            what = "is stored again" if offset == before else f"comes after offset {before}"
            self._differ(partition, offset, seq, f"it {what}")
            return
        self._last[partition] = offset
        if offset >= mark.high:
            return
        if offset < mark.low:
            self.older += 1
            return
        try:
            record = self._mapping.record(message.subject, headers, message.payload, source)
        except ValueError as error:
            self._differ(partition, offset, seq, str(error))
            return
        self.ledgers[partition].add(record, seq)

    def _differ(self, partition: int, offset: int, seq: int, what: str) -> None:
        self.differences[partition] = Difference(
            kafka_partition=partition, offset=offset, seq=seq, what=what
        )


async def verify(
    *, kafka: str, nats: str | NatsTarget, route: Route, kafka_options: dict[str, str] | None = None
) -> Proof:
    """Compare both sides; `Proof.equal` says how it went. Changes nothing on either.

    Unreachable, ConfigurationError as for a run; RecordError: a record went from Kafka meanwhile.
    """
    started = time.monotonic()
    mapping = Mapping(route)
    source = KafkaSource(kafka, route.topic, options=kafka_options)
    connection: Connection | None = None
    try:
        marks = await source.watermarks()
        connection = await Connection.open(nats, name=f"millstream verify {route.name}")
        check = _Check(source, connection, mapping, marks)
        return await check.run(started)
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(nats), str(lost)) from lost
    finally:
        await source.close()
        if connection is not None:
            await connection.close()


class _Check:
    """The two readings and the closer look at what differs."""

    def __init__(
        self,
        source: KafkaSource,
        connection: Connection,
        mapping: Mapping,
        marks: dict[int, Watermarks],
    ) -> None:
        self._source = source
        self._connection = connection
        self._mapping = mapping
        self._marks = marks
        self._last_seq = 0

    async def run(self, started: float) -> Proof:
        self._last_seq = await Stream(self._connection, self._mapping).last_seq()
        side = StreamSide(self._mapping, self._marks)
        await self._read_stream(side)
        kafka = await self._read_kafka(self._marks)
        partitions = {}
        for partition in sorted(self._marks):
            sides = kafka[partition].side(), side.ledgers[partition].side()
            difference = side.differences.get(partition)
            if difference is None and sides[0] != sides[1]:
                difference = await self._locate(
                    partition, kafka[partition], side.ledgers[partition]
                )
            partitions[partition] = PartitionProof(
                kafka=sides[0], nats=sides[1], difference=difference
            )
        return Proof(
            topic=self._mapping.route.topic,
            stream=self._mapping.route.stream,
            partitions=partitions,
            foreign=side.foreign,
            older=side.older,
            seconds=time.monotonic() - started,
        )

    async def _read_stream(self, side: StreamSide) -> None:
        stream, subject = self._mapping.route.stream, self._mapping.route_filter
        async for messages in read_stream(
            self._connection, stream, subject, last_seq=self._last_seq
        ):
            for seq, message in messages:
                side.add(seq, message)

    async def _read_kafka(self, marks: dict[int, Watermarks]) -> dict[int, Ledger]:
        ledgers = {partition: Ledger() for partition in marks}
        async for record in self._records(marks):
            ledgers[record.kafka_partition].add(record)
        return ledgers

    async def _locate(self, partition: int, kafka: Ledger, nats: Ledger) -> Difference:
        block = first_different_block(kafka, nats)
        assert block is not None
        low, high = block * BLOCK_OFFSETS, (block + 1) * BLOCK_OFFSETS
        mark = self._marks[partition]
        bounds = Watermarks(max(low, mark.low), min(high, mark.high))
        records = [record async for record in self._records({partition: bounds})]
        stored: list[tuple[int, Record]] = []
        async for messages in read_stream(
            self._connection,
            self._mapping.route.stream,
            self._mapping.partition_filter(partition),
            first_seq=nats.starts.get(block, 1),
            last_seq=self._last_seq,
        ):
            found = list(_records_of(self._mapping, messages, partition))
            stored += [(s, r) for s, r in found if bounds.low <= r.offset < bounds.high]
            if found and found[-1][1].offset >= bounds.high:
                break
        return compare(partition, records, stored) or Difference(
            kafka_partition=partition,
            offset=bounds.low,
            seq=nats.starts.get(block),
            what="a block differed and no longer does: somebody changes one of the sides",
        )

    async def _records(self, marks: dict[int, Watermarks]) -> AsyncIterator[Record]:
        """Kafka's records between the marks, in order per partition."""
        left = {p: mark.high for p, mark in marks.items() if mark.high > mark.low}
        await self._source.assign({p: marks[p].low for p in left}, sorted(left))
        silent = 0
        while left:
            polled = await self._source.poll(_POLL_RECORDS, _POLL_S)
            for record in polled.records:
                partition = record.kafka_partition
                if partition in left and record.offset < left[partition]:
                    yield record
                if record.offset + 1 >= left.get(partition, record.offset + 2):
                    del left[partition]
            if polled.error is not None:
                raise polled.error
            for partition, end in polled.ends.items():
                if partition in left and end >= left[partition]:
                    del left[partition]
            silent = 0 if polled.records or polled.ends else silent + 1
            if silent > _SILENT_POLLS_MAX:
                raise Unreachable("Kafka", self._source.bootstrap, "it stopped answering")


def _records_of(
    mapping: Mapping, messages: list[tuple[int, Message]], partition: int
) -> Iterator[tuple[int, Record]]:
    """The readable records of one partition among stored messages."""
    for seq, message in messages:
        headers = parse_block(message.block)[1] if message.block else []
        source = mapping.source_in(headers)
        if source is not None and source.kafka_partition == partition:
            yield seq, mapping.record(message.subject, headers, message.payload)
