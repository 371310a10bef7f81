"""Random lives of a route: whatever happens to it, each record is stored once, in its order.

A model of a topic (gaps of transactions, compaction, retention), a broker in this process, and
steps by chance: bridges that run, are stopped, killed, or two at once; messages of others; parked
records that are repaired and replayed. In the end all that the topic has must be in the stream,
as a reader finds it, the proof must say so, and it must find one message that is then removed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from millstream_bridge import Bridge, Polled, Positions, Record, Watermarks
from millstream_bridge.errors import OffsetGone
from millstream_bridge.jetstream.api import call
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.reader import read_stream
from millstream_bridge.model import TimestampType
from millstream_bridge.moving.parked import ParkedRecords
from millstream_bridge.proof.sides import LiveSides
from millstream_bridge.proof.verify import verify
from millstream_bridge.records.headers import parse_block
from millstream_bridge.records.mapping import Mapping
from millstream_bridge.records.poison import mark_in
from millstream_bridge.records.template import SubjectError
from millstream_broker import Broker, ServerOptions
from tests.bridge.moves import KEYS, STRANGE_HEADERS, a_route

SEEDS = range(12)
MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}
PARTITIONS = 2
MAX_PAYLOAD = 8_192
TEMPLATES = [
    "f.{partition}.{key}",
    "f.{partition}.{key|hash8}",
    "f.{partition}.{key}.{key.part[0]|default(x)}",
    "f.{partition}.{key}.{header[n]}",
]


@dataclass(slots=True)
class Topic:
    """What Kafka has: per partition, offset to record, and where the log begins and ends."""

    logs: dict[int, dict[int, Record]] = field(
        default_factory=lambda: {p: {} for p in range(PARTITIONS)}
    )
    low: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PARTITIONS), 0))
    high: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PARTITIONS), 0))
    is_compacted: bool = False


class TopicSource:
    """A `Source` of a topic. Behind ``most`` records it gives no more, and says so."""

    def __init__(self, topic: Topic, most: int | None = None) -> None:
        self.topic = topic
        self.is_out = asyncio.Event()
        self._most = most
        self._next: dict[int, int] = {}
        self._told: dict[int, int] = {}

    @property
    def place(self) -> tuple[str, str]:
        return "the model", "here"

    async def watermarks(self) -> dict[int, Watermarks]:
        return {p: Watermarks(self.topic.low[p], high) for p, high in self.topic.high.items()}

    async def topic_id(self) -> str | None:
        return None

    async def partition_count(self) -> int:
        return PARTITIONS

    async def known_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        return {}

    async def assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        self._next = {p: positions.get(p, self.topic.low[p]) for p in partitions}
        self._told = {}

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        await asyncio.sleep(0)
        found: list[Record] = []
        ends: dict[int, int] = {}
        for p, start in self._next.items():
            if start < self.topic.low[p]:
                return Polled([], {}, OffsetGone("t", p, start, self.topic.low[p]))
            for offset in sorted(it for it in self.topic.logs[p] if it >= start):
                if len(found) == 40 or self._most == 0:
                    break
                found.append(self.topic.logs[p][offset])
                self._next[p] = offset + 1
                self._most = None if self._most is None else self._most - 1
            else:
                self._next[p] = max(start, self.topic.high[p])
                if self._told.get(p) != self.topic.high[p]:
                    ends[p] = self._told[p] = self.topic.high[p]
        if self._most == 0:
            self.is_out.set()
        if not found and not ends:
            await asyncio.sleep(min(wait_s, 0.005))
        return Polled(found, ends)

    async def close(self) -> None:
        pass


class Life:
    """One route, its topic, and what may happen."""

    def __init__(self, mode: str, chance: random.Random, url: str) -> None:
        self.chance, self.url = chance, url
        large = "object-store" if mode == "dense" else chance.choice(["chunks", "object-store"])
        settings = {"subject": chance.choice(TEMPLATES), "large": large, **MODES[mode]}
        self.route = a_route("t", on_poison="park", on_gap="continue", **settings)
        self.mapping = Mapping(self.route)
        self.topic = Topic()
        self._made = 0

    async def happens(self) -> None:
        """One step."""
        steps = [self.produce, self.run, self.cut_off, self.two, self.stray, self.compact]
        steps += [self.retain, self.replay]
        await self.chance.choice(steps)()

    async def produce(self) -> None:
        for _ in range(self.chance.choice([1, 3, 30])):
            p = self.chance.randrange(PARTITIONS)
            offset = self.topic.high[p]
            self.topic.logs[p][offset] = self._record(p, offset)
            self.topic.high[p] = offset + 1 + (self.chance.random() < 0.1)

    def _record(self, partition: int, offset: int) -> Record:
        self._made += 1
        value = self.chance.choice([None, b"", b"%d" % self._made, b"long" * 4_000])
        headers = self.chance.choice(
            [(), (("n", b"1"),), (("n", b"\xff"), ("m", None)), tuple(STRANGE_HEADERS)]
        )
        kind, key = self.chance.choice(list(TimestampType)), self.chance.choice(KEYS)
        return Record(partition, offset, 1_600_000_000_000 + self._made, kind, key, value, headers)

    def _bridge(self, source: TopicSource) -> Bridge:
        return Bridge(source=source, nats=self.url, route=self.route, stand_back_s=0.05)

    async def run(self) -> None:
        await self._bridge(TopicSource(self.topic)).run(stop_at_end=True)

    async def cut_off(self) -> None:
        """A bridge that is stopped, or cancelled, somewhere on its way."""
        source = TopicSource(self.topic, most=self.chance.randrange(40))
        bridge = self._bridge(source)
        running = asyncio.create_task(bridge.run())
        out = asyncio.create_task(source.is_out.wait())
        await asyncio.wait({running, out}, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(self.chance.choice([0, 0.005]))
        if self.chance.random() < 0.5:
            running.cancel()
        else:
            bridge.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        out.cancel()

    async def two(self) -> None:
        bridges = [self._bridge(TopicSource(self.topic)) for _ in range(2)]
        await asyncio.gather(*(it.run(stop_at_end=True) for it in bridges))

    async def stray(self) -> None:
        """A message of another, under a subject of the route."""
        async with self.connected() as connection:
            with contextlib.suppress(SubjectError):
                subject = self.mapping.subject(self._record(self.chance.randrange(PARTITIONS), 0))
                await connection.request(subject, b"not a record")

    async def compact(self) -> None:
        """Of some of the log, all but the newest record of each key."""
        self.topic.is_compacted = True
        for p, log in self.topic.logs.items():
            old = {at: it for at, it in log.items() if at < self.topic.high[p] // 2}
            newest = {it.key: at for at, it in old.items()}
            for at in old.keys() - newest.values():
                del log[at]

    async def retain(self) -> None:
        """Remove what is old, also what was not moved yet."""
        for p, log in self.topic.logs.items():
            low = self.topic.low[p] = min(self.topic.low[p] + 5, self.topic.high[p])
            for at in [at for at in log if at < low]:
                del log[at]

    async def replay(self) -> None:
        """Repair a parked record and store it after all."""
        if self.route.mode == "dense":
            return
        async with self.connected() as connection:
            records = ParkedRecords(connection, self.mapping)
            for one in (await records.list())[:1]:
                _, record = await records.get(one.kafka_partition, one.offset)
                await records.repair(record._replace(headers=(("n", b"2"),), value=b"v"))
                await records.replay(one.kafka_partition, one.offset)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        connection = await Connection.open(self.url, name="life")
        try:
            yield connection
        finally:
            await connection.close()

    async def stored(self) -> tuple[dict[int, list[int]], dict[tuple[int, int], tuple[str, int]]]:
        """Offsets of each partition in the stream's order, marks too; and where each record is."""
        offsets: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}
        places: dict[tuple[int, int], tuple[str, int]] = {}
        names = dict.fromkeys(self.mapping.stream_name(p) for p in range(PARTITIONS))
        async with self.connected() as connection:
            for name in names:
                async for messages in read_stream(connection, name, ">", last_seq=1 << 62):
                    for seq, message in messages:
                        headers = parse_block(message.block)[1] if message.block else []
                        source = self.mapping.source_in(headers)
                        if source is not None:
                            offsets[source.kafka_partition].append(source.offset)
                            if mark_in(headers) is None:
                                places[source.kafka_partition, source.offset] = name, seq
        return offsets, places

    async def is_proven(self) -> bool:
        return (await verify(source=TopicSource(self.topic), nats=self.url, route=self.route)).equal


async def is_compacted(sides: LiveSides) -> bool:
    """In place of `LiveSides.is_compacted`, for a topic that is a model."""
    source: Any = sides._source
    return bool(source.topic.is_compacted)


@pytest.mark.parametrize("mode", MODES)
async def test_whatever_happens_each_record_is_stored_once_in_its_order_and_proven(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveSides, "is_compacted", is_compacted)
    options = ServerOptions(host="127.0.0.1", port=0, jetstream=True, max_payload=MAX_PAYLOAD)
    for seed in SEEDS:
        chance = random.Random(f"{mode} {seed}")
        async with asyncio.timeout(60), Broker(options=options) as broker:
            life = Life(mode, chance, broker.url)
            await life.run()
            for _ in range(chance.randrange(5, 12)):
                await life.happens()
            await life.run()

            offsets, places = await life.stored()
            for p, log in life.topic.logs.items():
                assert offsets[p] == sorted(set(offsets[p])), (seed, p)
                assert log.keys() <= set(offsets[p]), (seed, p)
            assert await life.is_proven(), seed

            there = [it for it in sorted(places) if it[1] in life.topic.logs[it[0]]]
            if there:
                name, seq = places[chance.choice(there)]
                async with life.connected() as connection:
                    await call(connection, f"STREAM.MSG.DELETE.{name}", {"seq": seq})
                assert not await life.is_proven(), (seed, name, seq)
