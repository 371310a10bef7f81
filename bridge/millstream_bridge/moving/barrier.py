"""The barrier: what a producer waits for after its last Kafka record, before its first message.

It notes the topic's ends, open transactions included, and returns when the stream holds everything
below them. So whatever the producer wrote to Kafka is in the stream before what it publishes there
itself, and the order of its keys holds across the move.
"""

import asyncio
from collections.abc import Mapping as AbcMapping

from ..errors import ConnectionLost, Unreachable
from ..jetstream.connection import Connection
from ..jetstream.stream import Stream
from ..jetstream.target import NatsTarget
from ..kafka.admin import KafkaAdmin
from ..kafka.source import KafkaSource
from ..model import Positions, Route, Watermarks
from ..records.mapping import Mapping
from ..records.origin import without_returned

POLL_FIRST_S, POLL_MOST_S = 0.01, 0.25
_LOOK_S = 0.2
_LOOK_RECORDS = 1_000


async def barrier(
    *,
    kafka: str,
    nats: str | NatsTarget,
    route: Route,
    timeout_s: float = 60.0,
    kafka_options: dict[str, str] | None = None,
) -> Positions:
    """Wait until all that is in the topic now is stored; per partition, the offset reached.

    TimeoutError says which partition is how far behind. Unreachable, ConfigurationError as for a
    run.
    """
    mapping = Mapping(route)
    source = KafkaSource(kafka, route.topic, options=kafka_options)
    admin = KafkaAdmin(kafka, options=kafka_options)
    connection: Connection | None = None
    try:
        marks = await source.watermarks()
        # Not those of `marks`: a transaction that was committed a moment ago may be behind them.
        ends = await admin.watermarks({route.topic: len(marks)}, is_committed=False)
        goal = {partition: mark.high for partition, mark in ends[route.topic].items()}
        connection = await Connection.open(nats, name=f"millstream barrier {route.name}")
        await until_stored(connection, mapping, source, goal, marks, timeout_s=timeout_s)
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(NatsTarget.of(nats)), str(lost)) from lost
    finally:
        await source.close()
        await admin.close()
        if connection is not None:
            await connection.close()
    return goal


async def until_stored(
    connection: Connection,
    mapping: Mapping,
    source: KafkaSource,
    goal: Positions,
    marks: AbcMapping[int, Watermarks],
    *,
    timeout_s: float,
) -> None:
    """Wait until the stream holds all that the topic has below each partition's offset.

    ``marks`` are the topic's. TimeoutError says which partition is how far behind.
    """
    route = mapping.route
    waiting = {p: offset for p, offset in goal.items() if offset > marks[p].low}
    stored: dict[int, int] = {}
    try:
        async with asyncio.timeout(timeout_s):
            wait_s = POLL_FIRST_S
            before: dict[int, int] = {}
            while waiting:
                for partition in list(waiting):
                    position = await _position(connection, mapping, partition)
                    stored[partition] = marks[partition].low if position is None else position
                    if stored[partition] >= waiting[partition] or (
                        stored[partition] == before.get(partition)
                        and await _is_only_gap(
                            source, route, partition, stored[partition], waiting[partition]
                        )
                    ):
                        del waiting[partition]
                before = dict(stored)
                if waiting:
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, POLL_MOST_S)
    except TimeoutError as error:
        behind = ", ".join(
            f"partition {p}: {stored.get(p, 0)} of {high}" for p, high in sorted(waiting.items())
        )
        raise TimeoutError(
            f"topic {route.topic} is not wholly in stream {route.stream}"
            f" after {timeout_s:g} s ({behind})"
        ) from error


async def _position(connection: Connection, mapping: Mapping, partition: int) -> int | None:
    is_dense = mapping.route.mode == "dense"
    stream = Stream(connection, mapping, partition if is_dense else None)
    if mapping.route.shared:
        _, checkpoint = await stream.checkpoint(partition)
        if checkpoint is not None and checkpoint.next_offset is not None:
            return checkpoint.next_offset
    return await stream.position(partition)


async def _is_only_gap(
    source: KafkaSource, route: Route, partition: int, start: int, end: int
) -> bool:
    """Whether Kafka holds nothing for this route from ``start`` to ``end``.

    Compaction and transactions leave gaps: the last offset before a high watermark may be a
    transaction's marker, which no record ever has. And what the way back wrote is not moved again.
    """
    await source.assign({partition: start}, [partition])
    while True:
        polled = await source.poll(_LOOK_RECORDS, _LOOK_S)
        if without_returned(polled.records, route.name):
            return False
        last = polled.records[-1].offset + 1 if polled.records else start
        if max(last, polled.ends.get(partition, -1)) >= end:
            return True
        if not polled.records:
            return False
