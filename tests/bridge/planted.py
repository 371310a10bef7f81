"""Both sides of a route in memory, and differences planted into the stored messages."""

import itertools
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from millstream_bridge import Record
from millstream_bridge.jetstream.api import StoredMessage, StreamInfo
from millstream_bridge.jetstream.connection import Delivery, Message
from millstream_bridge.jetstream.large import LargeValues
from millstream_bridge.model import TimestampType, Watermarks
from millstream_bridge.proof.decode import Decoder
from millstream_bridge.proof.sides import Bounds, Part
from millstream_bridge.records.headers import NatsHeaders
from millstream_bridge.records.mapping import Mapping
from millstream_coordinator.partitioning.pattern import covers

from .moves import KEYS, STRANGE_HEADERS, a_route

Stored = tuple[int, Message]
MAPPING = Mapping(a_route("flights"))
FOREIGN = "flights.0.N1"
"""Where messages are that no bridge wrote; they push records of theirs out."""


@dataclass(slots=True)
class MemorySides:
    """`Sides` of records and messages that are at hand."""

    kafka: Sequence[Record]
    stored: list[Stored]
    config: dict[str, Any] = field(default_factory=dict)
    is_compact: bool = False
    reached_to: dict[int, int] = field(default_factory=dict)
    age_s: float = math.inf
    now_ns: int = 0
    stored_ns: dict[int, int] = field(default_factory=dict)
    """When messages were stored, by sequence; the others long ago."""
    removes: tuple[int, int] | None = None
    """After so many batches of the stream were read, so many of its messages are removed; it has
    come of age then, and its clock is at ``removes_at_ns``."""
    removes_at_ns: int = 0
    stores: dict[int, list[Message]] = field(default_factory=dict)
    """What is stored after so many batches of the stream were read."""
    moves_on: dict[int, int] = field(default_factory=dict)
    """What ``reached_to`` is from the first batch on."""
    ends: Bounds | None = None
    """Kafka's log ends when all was read, if they are others than before."""
    mapping: Mapping = field(default_factory=lambda: MAPPING)
    _batches: int = 0

    @property
    def marks(self) -> Bounds:
        marks: dict[int, Watermarks] = {}
        for record in self.kafka:
            low = marks.get(record.kafka_partition, Watermarks(record.offset, 0)).low
            marks[record.kafka_partition] = Watermarks(low, record.offset + 1)
        return marks

    async def marks_now(self) -> Bounds:
        return self.marks if self.ends is None else self.ends

    async def parts(self, bounds: Bounds) -> list[Part]:
        first, last = (self.stored[0][0], self.stored[-1][0]) if self.stored else (1, 0)
        kept = len(self.stored)
        info = StreamInfo(dict(self.config), first, last, self.age_s, self.now_ns, kept)
        return [
            Part(
                stream="FLIGHTS",
                filter=self.mapping.route_filter,
                partitions=sorted(bounds),
                info=info,
            )
        ]

    async def again(self, part: Part) -> Part:
        return (await self.parts(dict.fromkeys(part.partitions, Watermarks(0, 0))))[0]

    async def messages(
        self, part: Part, subject: str, first_seq: int
    ) -> AsyncGenerator[list[Delivery]]:
        left = [
            it
            for it in self.stored
            if first_seq <= it[0] <= part.info.last_seq and covers(subject, it[1].subject)
        ]
        while left:
            if messages := self.stores.pop(self._batches, None):
                for message in messages:
                    self.store(message)
                kept = {seq for seq, _ in self.stored}
                left = [it for it in left if it[0] in kept]
                continue
            if self.removes is not None and self._batches == self.removes[0]:
                del self.stored[: self.removes[1]]
                self.removes, self.age_s, self.now_ns = None, math.inf, self.removes_at_ns
                left = [it for it in left if self.stored and it[0] >= self.stored[0][0]]
                continue
            self._batches += 1
            self.reached_to |= self.moves_on
            batch, left = left[:7], left[7:]
            yield [
                (
                    b"$JS.ACK.S.c.1.%d.1.%d.0" % (seq, self.stored_ns.get(seq, 0)),
                    it.subject.encode("utf-8", "surrogateescape"),
                    it.block,
                    it.payload,
                )
                for seq, it in batch
            ]

    def store(self, message: Message) -> None:
        """The next message, which may push an older one of its subject out."""
        self.stored.append((self.stored[-1][0] + 1 if self.stored else 1, message))
        same = [it for it in self.stored if it[1].subject == message.subject]
        if 0 < self.config.get("max_msgs_per_subject", 0) < len(same):
            self.stored.remove(same[0])

    async def next_message(self, part: Part, subject: str, seq: int) -> StoredMessage | None:
        for at, message in self.stored:
            if at >= seq and covers(subject, message.subject):
                headers = Decoder.lines(message.block)
                return StoredMessage(at, message.subject, headers, message.payload)
        return None

    async def reached(self, part: Part, partition: int) -> int | None:
        return self.reached_to.get(partition)

    async def whole(
        self, part: Part, seq: int, headers: NatsHeaders, payload: bytes
    ) -> tuple[NatsHeaders, bytes]:
        values = LargeValues(MemoryStream(self.stored))  # type: ignore[arg-type]
        return await values.whole(seq, headers, payload)

    async def records(self, bounds: Bounds) -> AsyncIterator[Sequence[Record]]:
        found = [
            it
            for it in self.kafka
            if it.kafka_partition in bounds
            and bounds[it.kafka_partition].low <= it.offset < bounds[it.kafka_partition].high
        ]
        for at in range(0, len(found), 11):
            yield found[at : at + 11]

    async def is_compacted(self) -> bool:
        return self.is_compact


@dataclass(slots=True)
class MemoryStream:
    """What `LargeValues` asks a stream for."""

    stored: list[Stored]
    name: str = "FLIGHTS"

    async def message(self, seq: int) -> StoredMessage | None:
        for at, it in self.stored:
            if at == seq:
                return StoredMessage(seq, it.subject, Decoder.lines(it.block), it.payload)
        return None


def some_kafka(chance: random.Random, partitions: int = 2, each: int = 30) -> list[Record]:
    """Records of all kinds around a boundary of blocks, their partitions interleaved, with gaps."""
    offsets = [chance.randrange(960, 1_000) for _ in range(partitions)]
    records = []
    for _ in range(partitions * each):
        partition = chance.randrange(partitions)
        offsets[partition] += 1 + (chance.random() < 0.1)
        key = chance.choice([*KEYS, b"N%d" % chance.randrange(5)])
        value = chance.choice([None, b"", b"leg %d" % chance.randrange(1_000), b"\r\n\x00"])
        headers = chance.choice([(), tuple(STRANGE_HEADERS), (("n", b"1"), ("trace", b"00-ab"))])
        kind = chance.choice(list(TimestampType))
        time_ms = 1_357_034_400_000 + chance.randrange(1_000)
        records.append(Record(partition, offsets[partition], time_ms, kind, key, value, headers))
    return records


def message_of(record: Record, n: int) -> Message:
    """The message a bridge makes of a record, with the guard lines of a session."""
    guard = f"Nats-Msg-Id: abc-{n}\r\nNats-Expected-Last-Msg-Id: abc-{n - 1}\r\n"
    block = f"NATS/1.0\r\n{guard}{MAPPING.header_lines(record)}\r\n"
    return Message(MAPPING.subject(record), "", block.encode(), record.value or b"")


def stored_of(records: Sequence[Record], chance: random.Random) -> list[Stored]:
    """What a bridge stores of the records, with foreign messages here and there."""
    stored: list[Stored] = []
    for n, record in enumerate(records):
        if chance.random() < 0.1:
            stored.append((len(stored) + 1, Message(FOREIGN, "", b"", b"not a bridge's")))
        stored.append((len(stored) + 1, message_of(record, n)))
    return stored


Plant = Callable[[list[Record], random.Random], tuple[list[Record], int, int]]
"""Changes what is stored; gives that, and the partition and offset to be blamed."""


def _changed(make: Callable[[Record, random.Random], Record]) -> Plant:
    def plant(records: list[Record], chance: random.Random) -> tuple[list[Record], int, int]:
        at = chance.randrange(len(records))
        victim = records[at]
        changed = make(victim, chance)
        assert changed != victim
        return [*records[:at], changed, *records[at + 1 :]], victim.kafka_partition, victim.offset

    return plant


def _flipped_value(record: Record, chance: random.Random) -> Record:
    value = bytearray(record.value or b"x")
    place = chance.randrange(len(value)) if value else 0
    value[place] ^= 1 << chance.randrange(8)
    return record._replace(value=bytes(value))


def _flipped_key(record: Record, chance: random.Random) -> Record:
    key = bytearray(record.key or b"x")
    key[chance.randrange(len(key))] ^= 1 << chance.randrange(8)
    return record._replace(key=bytes(key))


def _changed_header(record: Record, chance: random.Random) -> Record:
    headers = list(record.headers) or [("n", b"1")]
    place = chance.randrange(len(headers))
    name, value = headers[place]
    change = chance.choice(["value", "name", "null", "drop", "add", "order"])
    if change == "value":
        headers[place] = name, (value or b"") + b"x"
    elif change == "name":
        headers[place] = name + "x", value
    elif change == "null":
        headers[place] = name, None if value is not None else b""
    elif change == "drop":
        del headers[place]
    elif change == "order":
        headers.reverse()
    if tuple(headers) == record.headers:
        headers.append(("more", b"x"))
    return record._replace(headers=tuple(headers))


def _changed_time(record: Record, chance: random.Random) -> Record:
    if chance.random() < 0.5:
        return record._replace(timestamp_ms=record.timestamp_ms + chance.choice([-1, 1, 1_000]))
    kind = TimestampType.CREATE if record.timestamp_type == "l" else TimestampType.LOG_APPEND
    return record._replace(timestamp_type=kind)


def _changed_null(record: Record, _: random.Random) -> Record:
    return record._replace(value=b"" if record.value is None else None)


def _dropped(records: list[Record], chance: random.Random) -> tuple[list[Record], int, int]:
    at = chance.randrange(len(records))
    victim = records[at]
    return [*records[:at], *records[at + 1 :]], victim.kafka_partition, victim.offset


def _doubled(records: list[Record], chance: random.Random) -> tuple[list[Record], int, int]:
    at = chance.randrange(len(records))
    victim = records[at]
    later = chance.randrange(at + 1, len(records) + 1)
    return [*records[:later], victim, *records[later:]], victim.kafka_partition, victim.offset


def _swapped(records: list[Record], chance: random.Random) -> tuple[list[Record], int, int]:
    partition = chance.choice([it.kafka_partition for it in records])
    places = [n for n, it in enumerate(records) if it.kafka_partition == partition]
    if len(places) == 1:
        return _doubled(records, chance)
    n = chance.randrange(len(places) - 1)
    one, other = places[n], places[n + 1]
    changed = list(records)
    changed[one], changed[other] = changed[other], changed[one]
    return changed, partition, records[one].offset


def _invented(records: list[Record], chance: random.Random) -> tuple[list[Record], int, int]:
    """A record in a gap of Kafka's, or none where there is none."""
    partition = chance.choice([it.kafka_partition for it in records])
    own = [(n, it.offset) for n, it in enumerate(records) if it.kafka_partition == partition]
    for (_, before), (n, after) in itertools.pairwise(own):
        if after - before > 1:
            made = records[n]._replace(offset=before + 1)
            return [*records[:n], made, *records[n:]], partition, before + 1
    return _dropped(records, chance)


PLANTS: dict[str, Plant] = {
    "flipped byte of the value": _changed(_flipped_value),
    "flipped byte of the key": _changed(_flipped_key),
    "missing": _dropped,
    "doubled": _doubled,
    "swapped": _swapped,
    "changed header": _changed(_changed_header),
    "changed timestamp": _changed(_changed_time),
    "null and empty": _changed(_changed_null),
    "invented": _invented,
}
