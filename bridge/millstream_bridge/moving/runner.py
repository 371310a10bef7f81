"""The bridge of one route: backfill, then live tail, one loop without a seam.

A run is a row of sessions. Each begins by reading the stream (where does every partition stand?),
points the Kafka side there, and moves records until it is told to stop, until the end that was
noted at the start, or until something ends the session: a refusal, a lost connection, silence, a
topic that grew. Then everything in flight is forgotten and the next session begins. Nothing is kept
in memory that the stream does not know better, so a kill at any moment is just the end of a
session.

**Giving way.** When a session ends because another bridge of the same route wrote, this one stands
back: it waits until the stream has been quiet for `STAND_BACK_S` before it begins again. So of two
live bridges one works and the other waits, and takes over when the first falls silent. They may
both be awake on a quiet topic; the next record then decides which of the two goes on. After a stray
message the session begins again at once, but a run of sessions that store nothing stands back too.

**Sharing.** With a `Share` (see `sharing`) a session has only the partitions that membership gives
this process. It never stands back for another writer then: it begins again after a short pause,
until the other one, which can only be late, is refused for good.

**The same topic.** A topic that was deleted and made anew has another id. That is asked at every
session's beginning and every `LOOK_FOR_PARTITIONS_S`, and ends the run. So does a record in Kafka
that is not the one stored of its offset (see `seam`).

**Gaps.** Where Kafka's retention removed records before they were moved, the run ends, or goes on
behind the gap if the route says so (``on_gap``); how many offsets that were is counted and told.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from ..errors import (
    ConfigurationError,
    ConnectionLost,
    OffsetGone,
    RecordError,
    SessionLost,
    Unreachable,
)
from ..jetstream.connection import Connection
from ..jetstream.target import NatsTarget
from ..kafka.source import KafkaSource, source_of
from ..model import BridgeReport, Positions, Route, Watermarks
from ..ports import Publisher, Source
from ..records.mapping import Mapping
from .progress import Progress, State, route_at_work
from .publisher import publisher_for
from .reader import Reader
from .seam import Seam

if TYPE_CHECKING:
    from .sharing import Share

logger = logging.getLogger(__name__)

STAND_BACK_S = 1.0
RECONNECT_FIRST_S, RECONNECT_MOST_S = 0.05, 1.0
FRUITLESS_SESSIONS_MAX = 3
STOP_S = 0.5
"""What is in flight has so long to arrive after `Bridge.stop`; the next run reads the rest."""
LOOK_FOR_PARTITIONS_S = 10.0
_AGAIN_MOST_S = 0.2
_WITHOUT_A_WORD = "the server stores nothing and does not say why (a full disk? its log tells)"


class Ended(StrEnum):
    """Why a run ended well."""

    STOPPED = "stopped"
    END = "end"


class Bridge:
    """Moves one route. One `run` at a time; `stop` from the same loop (or a signal handler of it).

    Records come from ``kafka``, with librdkafka's ``kafka_options`` (security and the like), or
    from another ``source``, which is for one run, and closed by it. ``share`` is this process's
    part where several move the route. ``on_ready`` is called once, with the positions, when records
    flow; with a share, without positions, when others may have all of it. ``make_publisher`` is for
    another publisher than the route's own (see `publisher`).
    """

    def __init__(
        self,
        *,
        kafka: str | None = None,
        source: Source | None = None,
        nats: str | NatsTarget,
        route: Route,
        kafka_options: dict[str, str] | None = None,
        share: "Share | None" = None,
        stand_back_s: float = STAND_BACK_S,
        look_for_partitions_s: float = LOOK_FOR_PARTITIONS_S,
        make_publisher: Callable[[Connection, Mapping], "Publisher"] | None = None,
        on_ready: Callable[[Positions], None] | None = None,
    ) -> None:
        """ConfigurationError: the route's template cannot be used."""
        self.route = route
        self._progress = Progress()
        self._publisher: Publisher | None = None
        self._nats = nats
        self._kafka = kafka
        self._source = source
        self._kafka_options = kafka_options
        self._mapping = Mapping(route)
        self._share = share
        self._stand_back_s = stand_back_s
        self._look_for_partitions_s = look_for_partitions_s
        self._make_publisher = make_publisher or publisher_for
        self._on_ready = on_ready
        self._stopping = asyncio.Event()
        self._before = (0, 0, 0, 0)
        self._is_moving = False
        self._unreadable: set[int] = set()

    @property
    def progress(self) -> Progress:
        """Live figures; ask from the loop's thread."""
        self._note()
        return self._progress

    def stop(self) -> None:
        """Let what is in flight arrive, for STOP_S at most, then end the run."""
        self._stopping.set()

    async def run(self, *, stop_at_end: bool = False) -> BridgeReport:
        """Move records until `stop`, or until all that was in Kafka at the start is stored.

        Unreachable: Kafka or NATS did not answer at the start (later they are waited for).
        ConfigurationError: topic or stream cannot be used. RecordError: a record cannot be moved,
        or Kafka has another one than was stored.
        """
        if stop_at_end and self._share is not None:
            raise ConfigurationError(
                f"route {self.route.name}: one of several processes cannot know the end of all"
            )
        route_at_work.set(self.route.name)
        started = time.monotonic()
        source = source_of(self._source, self._kafka, self.route.topic, self._kafka_options)
        work = asyncio.create_task(self._work(source, stop_at_end), name="bridge")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._is_moving and not work.done():
                await asyncio.wait({work}, timeout=STOP_S)
            if not work.done():
                work.cancel()  # it only waits for somebody to answer
                await asyncio.wait({work})
            ended = Ended.STOPPED if work.cancelled() else await work
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.wait({work, stop})
            self._progress.state = State.ENDED
            await source.close()
        return BridgeReport(
            topic=self.route.topic,
            stream=self.route.stream,
            ended=ended,
            records=self.progress.records,
            payload_bytes=self.progress.payload_bytes,
            seconds=time.monotonic() - started,
            sessions=self.progress.sessions,
            refusals=self.progress.refusals,
            stood_back=self.progress.stood_back,
            foreign_seqs=tuple(self.progress.foreign_seqs),
            positions=dict(sorted(self.progress.positions.items())),
            parked=self.progress.parked,
            skipped=self.progress.skipped,
            missed_offsets=self.progress.missed,
        )

    async def _work(self, source: Source, stop_at_end: bool) -> Ended:
        marks = await source.watermarks()
        connection = await self._connect()
        goal = {p: mark.high for p, mark in marks.items()} if stop_at_end else None
        return await self._sessions(source, connection, goal)

    async def _connect(self) -> Connection:
        return await Connection.open(self._nats, name=f"millstream bridge {self.route.name}")

    async def _sessions(
        self, source: Source, connection: Connection | None, goal: Positions | None
    ) -> Ended:
        """One session after the other until one ends well."""
        fruitless = 0
        publisher: Publisher | None = None
        try:
            while not self._stopping.is_set():
                if connection is None:
                    connection, publisher = await self._reconnect(fruitless), None
                    if connection is None:
                        break
                if publisher is None:
                    self._note()
                    publisher = self._publisher = self._make_publisher(connection, self._mapping)
                    done = self._progress
                    self._before = (done.records, done.payload_bytes, done.parked, done.skipped)
                before = self.progress.records
                try:
                    return await self._session(source, publisher, goal)
                except (ConnectionLost, Unreachable) as lost:
                    if self._progress.sessions == 0:
                        raise _as_unreachable(lost, connection) from lost
                    logger.warning("%s; trying again", lost, extra={"event": "connection_lost"})
                    await connection.close()
                    connection = None
                except SessionLost as lost:
                    logger.info("session over: %s", lost, extra={"event": "session_over"})
                    connection = await self._give_way(lost, publisher, connection, fruitless)
                finally:
                    fruitless = 0 if self.progress.records > before else fruitless + 1
            return Ended.STOPPED
        finally:
            if connection is not None:
                await connection.close()

    async def _session(self, source: Source, publisher: Publisher, goal: Positions | None) -> Ended:
        try:
            return await self._session_of(*await self._part(source), source, publisher, goal)
        finally:
            if self._share is not None:
                done = self._progress
                done.ends, done.read, done.due, done.newest_ms, done.epochs = {}, {}, {}, {}, {}
                self._share.settle()

    async def _part(self, source: Source) -> tuple[dict[int, Watermarks], int]:
        """The partitions this process is to move, with their marks, and how many there are."""
        marks = await source.watermarks()
        if self._share is None:
            return marks, len(marks)
        self._progress.state = State.STANDING_BY
        self._tell_ready({})
        self._progress.epochs = await self._share.take(sorted(marks))
        # It may have waited long.
        marks = await source.watermarks()
        return {p: mark for p, mark in marks.items() if p in self._progress.epochs}, len(marks)

    async def _session_of(
        self,
        marks: dict[int, Watermarks],
        partition_count: int,
        source: Source,
        publisher: Publisher,
        goal: Positions | None,
    ) -> Ended:
        partitions = sorted(marks)
        await self._check_identity(source)
        positions = await publisher.open(marks, known=self.progress.positions)
        if any(at > marks[p].high for p, at in positions.items()):
            # Another bridge may have stored records younger than our marks.
            found = await source.watermarks()
            marks = {p: found.get(p, mark) for p, mark in marks.items()}
        positions = self._checked_positions(positions, marks)
        # Of another source, an offset always means the same record.
        stored = positions if isinstance(source, KafkaSource) else {}
        seam = Seam(stored, marks, publisher.check_same, self._unreadable)
        await source.assign({**positions, **seam.starts}, partitions)
        self._progress.sessions += 1
        self._progress.state = State.MOVING
        logger.info(
            "session %d: %d partitions of %s",
            self._progress.sessions,
            len(partitions),
            self.route.topic,
            extra={"event": "session_began", "partitions": partitions},
        )
        self._tell_ready(positions)
        reader = Reader(
            source,
            publisher.batch_records,
            positions,
            marks,
            seam=seam,
            partition_count=partition_count,
            look_for_partitions_s=self._look_for_partitions_s,
            check_topic=partial(self._check_identity, source),
        )
        done = self._progress
        done.ends, done.read, done.due = reader.ends, reader.read, reader.due
        done.newest_ms = reader.newest_ms
        self._is_moving = True
        try:
            return await self._move(reader, publisher, goal)
        finally:
            self._is_moving = False
            try:
                await reader.close()
            finally:
                await publisher.end()

    async def _check_identity(self, source: Source) -> None:
        """ConfigurationError: it is another topic than the one this run began with.

        What a stream was filled from before, the stream knows (see `jetstream.stream`).
        """
        found, known = await source.topic_id(), self._mapping.topic_id
        if found is not None and known is not None and found != known:
            raise ConfigurationError(
                f"topic {self.route.topic} was deleted and made anew while it was moved:"
                f" its id is {found} now, and was {known}"
            )
        self._mapping.topic_id = found or known

    def _tell_ready(self, positions: Positions) -> None:
        if self._on_ready is not None:
            self._on_ready(positions)
            self._on_ready = None

    async def _move(self, reader: Reader, publisher: Publisher, goal: Positions | None) -> Ended:
        while True:
            if self._stopping.is_set():
                # What does not arrive now, the next run reads again.
                with suppress(SessionLost):
                    await publisher.drain()
                return Ended.STOPPED
            if goal is not None and reader.has_reached(goal):
                await publisher.drain()
                return Ended.END
            polled = await reader.next()
            if self._share is not None and self._share.has_changed:
                await publisher.drain()
                raise SessionLost("this process's part of the route has changed")
            if polled.records:
                await publisher.send(polled.records)
            if polled.error is not None:
                await publisher.drain()
                if isinstance(polled.error, OffsetGone) and self.route.on_gap == "continue":
                    raise SessionLost(str(polled.error))  # the next one looks where to go on
                raise polled.error
            publisher.check()
            self._progress.lag = reader.lag

    def _note(self) -> None:
        publisher = self._publisher
        if publisher is None:
            return
        done = self._progress
        records, size = publisher.stored
        parked, skipped = publisher.set_aside
        done.records, done.payload_bytes, done.parked, done.skipped = (
            before + now
            for before, now in zip(self._before, (records, size, parked, skipped), strict=True)
        )
        for partition, position in publisher.positions.items():
            if position > self._progress.positions.get(partition, -1):
                self._progress.positions[partition] = position
        for seq in publisher.foreign_seqs:
            if seq not in self._progress.foreign_seqs:
                self._progress.foreign_seqs.append(seq)

    def _checked_positions(
        self, positions: Positions, marks: dict[int, Watermarks]
    ) -> dict[int, int]:
        """The positions, behind what Kafka no longer has if the route says to go on there."""
        checked = dict(positions)
        for partition, position in positions.items():
            mark = marks.get(partition)
            if mark is None or position > mark.high:
                end = "it has no such partition" if mark is None else f"its log ends at {mark.high}"
                raise RecordError(
                    self.route.topic,
                    partition,
                    position,
                    f"stream {self.route.stream} is ahead of Kafka: {end};"
                    " this is not the topic it was filled from",
                )
            if position >= mark.low:
                continue
            if self.route.on_gap == "stop":
                raise OffsetGone(self.route.topic, partition, position, mark.low)
            checked[partition] = mark.low
            self._progress.missed += mark.low - position
            logger.warning(
                "topic %s partition %d: Kafka no longer has offsets %d to %d; going on behind them",
                self.route.topic,
                partition,
                position,
                mark.low - 1,
                extra={"event": "gap", "partition": partition, "from": position, "to": mark.low},
            )
        return checked

    async def _reconnect(self, fruitless: int) -> Connection | None:
        """Try until NATS answers; None when told to stop first. Waits longer after each failure."""
        self._progress.state = State.RECONNECTING
        while True:
            await self._sleep(_pause_s(fruitless) if fruitless else 0)
            if self._stopping.is_set():
                return None
            try:
                return await self._connect()
            except Unreachable as error:
                logger.info("%s", error, extra={"event": "reconnect_failed"})
            fruitless += 1

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not longer than until told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _give_way(
        self, lost: SessionLost, publisher: Publisher, connection: Connection, fruitless: int
    ) -> Connection | None:
        """Stand back if another bridge ended the session, or too many in a row stored nothing.

        Returns the connection, None if it was lost.
        """
        if lost.is_not_now:
            await self._wait_for_better(str(lost), fruitless)
            return connection
        try:
            is_rival = await publisher.met_rival() if lost.is_refused else None
            self._progress.refusals += is_rival is not None
            if lost.is_refused and is_rival is None:
                await self._wait_for_better(_WITHOUT_A_WORD, fruitless)
            elif self._share is not None:
                # The slots say who is to write. Another can only be one that does not know yet.
                if lost.is_refused or fruitless:
                    await self._sleep(min(_pause_s(fruitless), _AGAIN_MOST_S))
            elif is_rival or (lost.is_refused and fruitless >= FRUITLESS_SESSIONS_MAX):
                await self._stand_back(publisher)
            elif fruitless and not lost.is_refused:
                await self._sleep(_pause_s(fruitless))
        except SessionLost:
            await connection.close()
            return None
        return connection

    async def _wait_for_better(self, reason: str, fruitless: int) -> None:
        """Wait longer after each session that stored nothing: a server may have no room for long.

        One that stored something is followed by the next at once.
        """
        if not fruitless:
            return
        if fruitless == 1:
            logger.warning(
                "stream %s takes nothing now: %s; trying again until it does",
                self.route.stream,
                reason,
                extra={"event": "takes_nothing"},
            )
        await self._sleep(_pause_s(fruitless))

    async def _stand_back(self, publisher: Publisher) -> None:
        """Wait until no bridge of this route has stored anything for a while."""
        self._progress.stood_back += 1
        self._progress.state = State.STANDING_BACK
        logger.warning(
            "standing back: somebody else keeps writing to stream %s; this bridge goes on when it"
            " has been quiet for %g s",
            self.route.stream,
            self._stand_back_s,
            extra={"event": "standing_back"},
        )
        mark = -1
        while not self._stopping.is_set():
            now = await publisher.progress_mark()
            if now == mark:
                return
            mark = now
            await self._sleep(self._stand_back_s)


def _pause_s(fruitless: int) -> float:
    return min(RECONNECT_FIRST_S * 2.0 ** min(fruitless, 10), RECONNECT_MOST_S)


def _as_unreachable(lost: Exception, connection: Connection) -> Unreachable:
    if isinstance(lost, Unreachable):
        return lost
    return Unreachable("JetStream", connection.url, str(lost))
