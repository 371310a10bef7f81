"""The barrier: what a producer waits for after its last Kafka record, before its first message.

It notes the topic's ends, open transactions included, and returns when the stream holds everything
below them. So whatever the producer wrote to Kafka is in the stream before what it publishes there
itself, and the order of its keys holds across the move.

Who is out of reach at the start is told at once. Later, while servers restart and leaders are
elected, it asks again until its time is up: both sides, or one partition, may be silent for long.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping as AbcMapping
from contextlib import asynccontextmanager

from ..errors import ConfigurationError, ConnectionLost, Unreachable
from ..jetstream.api import stream_info
from ..jetstream.connection import Connection
from ..jetstream.stream import Stream
from ..jetstream.target import NatsTarget
from ..kafka.admin import KafkaAdmin
from ..kafka.source import KafkaSource
from ..model import Positions, Route, Watermarks
from ..records.mapping import Mapping
from ..records.origin import without_returned

logger = logging.getLogger(__name__)

POLL_FIRST_S, POLL_MOST_S = 0.01, 0.25
FIRST_LOOK_S = 12.0
"""So long a first look may take, however short the time limit: longer than it takes either side to
be found out of reach."""
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

    TimeoutError says which partition is how far behind. Unreachable: Kafka or NATS did not answer
    at the start, or was away when time was up. ConfigurationError as for a run.
    """
    mapping = Mapping(route)
    source = KafkaSource(kafka, route.topic, options=kafka_options, leader_wait_s=0.0)
    admin = KafkaAdmin(kafka, options=kafka_options)
    wait = _Wait(route, timeout_s)
    try:
        async with wait.limit():
            marks, goal = await _ends(source, admin, route.topic, wait)
            wait.behind = "JetStream has not told yet how far it is"
            await _connected_until_stored(nats, mapping, source, goal, marks, wait)
    finally:
        await source.close()
        await admin.close()
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

    ``marks`` are the topic's. TimeoutError says which partition is how far behind. ConnectionLost.
    """
    wait = _Wait(mapping.route, timeout_s)
    async with wait.limit():
        await _until_stored(connection, mapping, source, goal, marks, wait)


class _Wait:
    """A time limit, and what is waited for within it."""

    def __init__(self, route: Route, timeout_s: float) -> None:
        self.behind = "Kafka has not told yet where it ends"
        """Which partitions are how far behind, at the latest look."""
        self._route = route
        self._timeout_s = timeout_s
        self._ends_at = asyncio.get_running_loop().time() + timeout_s
        self._pause_s = POLL_FIRST_S
        self._away: Unreachable | None = None
        self._told: set[str] = set()

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """End what takes longer, but not a first look.

        TimeoutError says how far it came; Unreachable: who was away at the end.
        """
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(max(self._ends_at, now + FIRST_LOOK_S)):
                yield
        except TimeoutError as error:
            route, after = self._route, f"after {self._timeout_s:g} s"
            if self._away is not None:
                what, where, reason = self._away.what, self._away.where, self._away.reason
                raise Unreachable(what, where, f"{reason}; so still {after}") from error
            raise TimeoutError(
                f"topic {route.topic} is not wholly in stream {route.stream} {after}"
                f" ({self.behind})"
            ) from error

    async def pause(self) -> None:
        """Between two looks; TimeoutError: there is no time for another."""
        if asyncio.get_running_loop().time() >= self._ends_at:
            raise TimeoutError
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, POLL_MOST_S)

    async def pause_for(self, away: Unreachable) -> None:
        """The same, because of somebody who does not answer; told once."""
        self._away = away
        if str(away) not in self._told:
            self._told.add(str(away))
            logger.warning(
                "the barrier of topic %s waits: %s",
                self._route.topic,
                away,
                extra={"event": "barrier_waits"},
            )
        await self.pause()

    def heard(self) -> None:
        """Everybody has answered."""
        self._away = None


async def _ends(
    source: KafkaSource, admin: KafkaAdmin, topic: str, wait: _Wait
) -> tuple[dict[int, Watermarks], Positions]:
    """The topic's watermarks and the ends to be reached. Unreachable: Kafka was never heard of.

    The ends are not the high watermarks of one who reads what is committed: a transaction that was
    committed a moment ago may be behind them.
    """
    is_heard = False
    while True:
        try:
            marks = await source.watermarks()
            ends = await admin.watermarks({topic: len(marks)}, is_committed=False)
        except Unreachable as away:
            is_heard = is_heard or source.is_heard
            if not is_heard:
                raise
            await wait.pause_for(away)
        else:
            wait.heard()
            return marks, {partition: mark.high for partition, mark in ends[topic].items()}


async def _connected_until_stored(
    nats: str | NatsTarget,
    mapping: Mapping,
    source: KafkaSource,
    goal: Positions,
    marks: AbcMapping[int, Watermarks],
    wait: _Wait,
) -> None:
    """`until_stored`, over as many connections as it takes. Unreachable: not even one was made."""
    is_heard = False
    while True:
        try:
            connection = await Connection.open(
                nats, name=f"millstream barrier {mapping.route.name}"
            )
            is_heard = True
            try:
                return await _until_stored(connection, mapping, source, goal, marks, wait)
            finally:
                await connection.close()
        except ConnectionLost as lost:
            await wait.pause_for(Unreachable("JetStream", str(NatsTarget.of(nats)), str(lost)))
        except Unreachable as away:
            if not is_heard:
                raise
            await wait.pause_for(away)


async def _until_stored(
    connection: Connection,
    mapping: Mapping,
    source: KafkaSource,
    goal: Positions,
    marks: AbcMapping[int, Watermarks],
    wait: _Wait,
) -> None:
    route = mapping.route
    waiting = {p: offset for p, offset in goal.items() if offset > marks[p].low}
    stored: dict[int, int] = {}
    while waiting:
        before = dict(stored)
        for partition in list(waiting):
            position = await _reached(connection, mapping, partition, marks)
            stored[partition] = marks[partition].low if position is None else position
            if stored[partition] >= waiting[partition] or (
                stored[partition] == before.get(partition)
                and await _is_only_gap(
                    source, route, partition, stored[partition], waiting[partition]
                )
            ):
                del waiting[partition]
        wait.heard()
        if waiting:
            wait.behind = ", ".join(
                f"partition {p}: {stored[p]} of {high}" for p, high in sorted(waiting.items())
            )
            await wait.pause()


async def _reached(
    connection: Connection, mapping: Mapping, partition: int, partitions: Iterable[int]
) -> int | None:
    """A partition's position in the stream, None: nothing of it is stored.

    A dense route has no stream yet of a partition that was added. ConfigurationError: it has none
    at all.
    """
    stream = Stream.of_partition(connection, mapping, partition)
    try:
        return await stream.reached(partition)
    except ConfigurationError:
        names = [Stream.of_partition(connection, mapping, p).name for p in partitions]
        there = {name for name in names if await stream_info(connection, name) is not None}
        if stream.name in there or not there:
            raise
        return None


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
