"""The way back at work: sessions of one transaction after the other.

A session takes the transactional id over (which ends whoever had it, for good: that one does not
take it back), reads the position from Kafka, makes the stream's consumer there, and then: what has
arrived becomes records, the records and the position after them become one transaction, and so on.
Nothing is kept in memory that Kafka does not know better. Whatever ends a session, a lost
connection on either side, an aborted transaction, a kill, the next one begins with reading the
position.

Messages that do not go back (they came from Kafka) move the position too, at the latest every
`SAVE_S` seconds, with the end of a run, and `RENEW_S` after the last time, so that Kafka does not
forget it.

A message that cannot become a record, or that the broker refuses, stops the run once everything
before it is in Kafka; with the route's ``on_poison`` not ``stop`` it is logged with its sequence,
counted, and left in the stream, where it stays readable.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from ..errors import BridgeError, ConfigurationError, ConnectionLost, SessionLost, Unreachable
from ..jetstream import consumer
from ..jetstream.api import stream_info
from ..jetstream.connection import Connection
from ..jetstream.reader import first_from
from ..jetstream.target import NatsTarget
from ..kafka.admin import KafkaAdmin, TopicConfig
from ..kafka.sink import KafkaSink, Position, Refused
from ..kafka.source import KafkaSource
from ..model import Record, Route
from ..moving.progress import State, route_at_work
from ..records.mapping import Mapping as RouteMapping
from .growth import Growth
from .position import StreamFacts, newest_returned
from .progress import BackProgress, BackReport
from .returning import Delivered, NotReturnable, Returning
from .tail import Tail
from .values import with_values

logger = logging.getLogger(__name__)

WAY_BACK: Final = "millstream-back-"
"""What the names of all ways back begin with, at Kafka and at NATS."""
_NAME_MAX: Final = 255
"""Of a consumer; Kafka's names may be longer."""
SAVE_S = 1.0
RENEW_S = 3_600.0
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 1.0
STOP_S = 2.0
CONFIG_S = 1.5
"""So long Kafka may take to tell a topic's settings; the mock cluster never does."""
_WAIT_S = 0.2


class CannotReturn(BridgeError):
    """A message cannot go back; everything before it in the stream is in Kafka."""

    def __init__(self, stream: str, seq: int, topic: str, reason: str) -> None:
        super().__init__(
            f"stream {stream} sequence {seq} cannot go back to topic {topic}: {reason};"
            " all before it is there"
        )
        self.stream, self.seq, self.topic, self.reason = stream, seq, topic, reason


class BackBridge:
    """Moves one route's stream into a topic. One `run` at a time; `stop` from the same loop."""

    def __init__(
        self,
        *,
        kafka: str,
        nats: str | NatsTarget,
        route: Route,
        topic: str | None = None,
        everything: bool = False,
        from_seq: int | None = None,
        kafka_options: Mapping[str, str] | None = None,
        on_ready: Callable[[Mapping[int, Position]], None] | None = None,
    ) -> None:
        """``topic``: the route's own, or another; ``everything``: also what came from Kafka.

        ``from_seq`` says where to begin instead of any position that is remembered.
        ConfigurationError: the route cannot be used, or everything would go to its own topic.
        """
        self.route = route
        self.topic = topic or route.topic
        self.everything = everything
        if everything and self.topic == route.topic:
            raise ConfigurationError(
                f"topic {self.topic} has the records that came from it already:"
                " everything can only go to another topic"
            )
        self.name = way_back_name(route, self.topic)
        self.progress = BackProgress()
        self._mapping = RouteMapping(route)
        self._kafka, self._nats, self._options = kafka, nats, dict(kafka_options or {})
        self._from_seq = from_seq
        self._on_ready = on_ready
        self._stopping = asyncio.Event()
        self._skip: set[tuple[str, int]] = set()
        self._refused: dict[tuple[str, int], str] = {}
        """By stream and sequence, why the broker does not take it."""
        self._saved_at = 0.0
        self._news = asyncio.Event()

    def stop(self) -> None:
        """Let the transaction under way end, then end the run."""
        self._stopping.set()

    async def run(self, *, stop_at_end: bool = False) -> BackReport:
        """Move messages until `stop`, or until all that the stream had at the start is in Kafka.

        Unreachable: Kafka or NATS did not answer at the start (later they are waited for).
        ConfigurationError: topic, stream or position cannot be used. CannotReturn. Fenced: another
        one has taken over.
        """
        started = time.monotonic()
        route_at_work.set(self.route.name)
        sink = KafkaSink(self._kafka, self.topic, self.name, options=self._options)
        work = asyncio.create_task(self._sessions(sink, stop_at_end), name="way back")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=STOP_S)
            if not work.done():
                work.cancel()  # it only waits for somebody to answer
                await asyncio.wait({work})
            ended = "stopped" if work.cancelled() else await work
        except BridgeError as error:
            self.progress.error = error
            raise
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.wait({work, stop})
            await sink.close()
            self.progress.state = State.ENDED
        done = self.progress
        return BackReport(
            topic=self.topic,
            stream=self.route.stream,
            ended=ended,
            records=done.records,
            payload_bytes=done.payload_bytes,
            from_kafka=done.from_kafka,
            passed_over=done.passed_over,
            transactions=done.transactions,
            sessions=done.sessions,
            seconds=time.monotonic() - started,
            positions={at.stream: at.next_seq for _, at in sorted(done.positions.items())},
        )

    async def _sessions(self, sink: KafkaSink, stop_at_end: bool) -> str:
        fruitless = 0
        goal: dict[int, int] | None = {} if stop_at_end else None
        while not self._stopping.is_set():
            before = self.progress.transactions, len(self._refused)
            try:
                return await self._session(sink, goal)
            except (SessionLost, Unreachable) as lost:
                if self.progress.sessions == 0:
                    raise _as_unreachable(lost, str(self._nats)) from lost
                self.progress.state = State.RECONNECTING
                logger.warning("%s; beginning again", lost, extra={"event": "back_session_over"})
            is_further = (self.progress.transactions, len(self._refused)) != before
            fruitless = 0 if is_further else fruitless + 1
            await self._sleep(min(RETRY_FIRST_S * 2 ** min(fruitless, 10), RETRY_MOST_S))
        return "stopped"

    async def _session(self, sink: KafkaSink, goal: dict[int, int] | None) -> str:
        partitions = await sink.partition_count()
        streams = self._streams(partitions)
        connection = await Connection.open(self._nats, name=f"millstream {self.name}")
        tails: dict[int, Tail] = {}
        try:
            facts = await self._facts(connection, streams)
            missing = {slot: name for slot, name in streams.items() if slot not in facts}
            positions = await self._begin(sink, connection, facts, missing)
            if goal is not None and not goal:
                goal.update({slot: it.last_seq for slot, it in facts.items()})
            self.progress.positions = dict(positions)
            for slot, at in positions.items():
                tails[slot] = await Tail.open(
                    connection,
                    at.stream,
                    self._subject(slot),
                    at.next_seq,
                    name=self.name,
                    news=self._news,
                )
            self.progress.sessions += 1
            self.progress.lag = sum([tail.lag for tail in tails.values()])
            self.progress.state = State.MOVING
            self._from_seq = None
            if self._on_ready is not None:
                self._on_ready(positions)
                self._on_ready = None
            returning = Returning(self._mapping, partitions, everything=self.everything)
            growth = Growth(sink, connection, partitions, missing)
            return await self._move(sink, connection, tails, returning, growth, goal)
        finally:
            for tail in tails.values():
                tail.close()
            await connection.close()

    async def _facts(
        self, connection: Connection, streams: Mapping[int, str]
    ) -> dict[int, StreamFacts]:
        """Of the streams that are there: a partition that was added may have none yet.

        ConfigurationError: none of them is there.
        """
        there = {
            slot: name for slot, name in streams.items() if await stream_info(connection, name)
        }
        return {
            slot: await StreamFacts.read(connection, name)
            for slot, name in (there or streams).items()
        }

    async def _begin(
        self,
        sink: KafkaSink,
        connection: Connection,
        facts: Mapping[int, StreamFacts],
        missing: Mapping[int, str],
    ) -> dict[int, Position]:
        """Where each stream is read from; fences, and writes down where a first run begins."""
        if self.progress.positions and sink.is_open:
            # Whoever took over may be why the session before ended. Taking over in turn would go on
            # for ever: the old client, fenced by then, is asked first.
            await sink.store([], self.progress.positions)
        remembered = await sink.open(sorted([*facts, *missing]))
        for slot, name in missing.items():
            if slot in remembered or slot in self.progress.positions:
                raise ConfigurationError(f"stream {name} is not there any more")
        start = self._from_seq
        if start is not None:
            positions = {slot: it.at(start) for slot, it in facts.items()}
            await sink.store([], positions)
            return positions
        for slot, position in remembered.items():
            facts[slot].check(position)
        positions = {
            slot: remembered.get(slot, it.at(max(1, it.first_seq))) for slot, it in facts.items()
        }
        if remembered:
            return positions
        found = [await consumer.pending_of(connection, it.name, self.name) for it in facts.values()]
        if any(it is not None for it in found):
            positions = await self._recall(positions)
        await sink.store([], positions)
        return positions

    async def _recall(self, positions: Mapping[int, Position]) -> dict[int, Position]:
        """Where the records themselves say it stands. ConfigurationError: they cannot."""
        if self.everything:
            raise ConfigurationError(
                f"Kafka has forgotten where the way back {self.name} stands, and the records of"
                f" topic {self.topic} do not say: say with which sequence to begin"
            )
        source = KafkaSource(self._kafka, self.topic, options=self._options)
        admin = KafkaAdmin(self._kafka, options=self._options, timeout_s=CONFIG_S)
        try:
            newest, unsure = await newest_returned(source, self.route.name)
            config = (await admin.configs([self.topic])).get(self.topic)
        finally:
            await source.close()
            await admin.close()
        reason = f"has lost the beginning of partition {unsure[0]}" if unsure else ""
        if isinstance(config, TopicConfig) and config.is_compacted:
            reason = "is compacted"
        if reason:
            raise ConfigurationError(
                f"Kafka has forgotten where the way back {self.name} stands, and topic {self.topic}"
                f" {reason}: say with which sequence to begin (the newest record that is back is of"
                f" sequence {max(newest.values(), default=0)})"
            )
        logger.warning(
            "Kafka has forgotten where the way back %s stands; its records say it",
            self.name,
            extra={"event": "back_position_recalled"},
        )
        found = dict(positions)
        for slot, at in positions.items():
            seen = [newest.get(slot, 0)] if self.route.mode == "dense" else newest.values()
            found[slot] = at._replace(next_seq=max([at.next_seq, *(seq + 1 for seq in seen)]))
        return found

    async def _move(
        self,
        sink: KafkaSink,
        connection: Connection,
        tails: Mapping[int, Tail],
        returning: Returning,
        growth: Growth,
        goal: dict[int, int] | None,
    ) -> str:
        unsaved: dict[int, Position] = {}
        while True:
            is_at_end = await self._is_over(connection, goal, tails, unsaved)
            arrived = await self._arrived(tails, 0 if is_at_end else _WAIT_S)
            records: list[Record] = []
            trouble: NotReturnable | None = None
            for slot, messages in arrived.items():
                if self.everything:
                    arrived[slot] = await with_values(connection, self._mapping, slot, messages)
                position, trouble = self._convert(
                    tails[slot].stream, arrived[slot], returning, records
                )
                if messages:
                    newest_ns = max(self.progress.newest_ns, messages[-1].time_ns)
                    self.progress.newest_ns = newest_ns
                if position:
                    unsaved[slot] = self.progress.positions[slot]._replace(next_seq=position)
                if trouble is not None:
                    break
            is_over = await self._is_over(connection, goal, tails, unsaved)
            if records or is_over or trouble or self._is_time_to_save(unsaved):
                await self._store(sink, records, unsaved)
                unsaved = {}
            if trouble is not None:
                await growth.check()  # that may be the trouble
                raise self._cannot(trouble, tails[slot].stream)
            await growth.check_in_time()
            if is_over:
                return "stopped" if self._stopping.is_set() else "end"
            self.progress.lag = sum([tail.lag for tail in tails.values()])

    async def _arrived(
        self, tails: Mapping[int, Tail], wait_s: float
    ) -> dict[int, list[Delivered]]:
        """What the streams have brought, after a short wait for the first of them."""
        arrived = {slot: await tail.next(0) for slot, tail in tails.items()}
        if any(arrived.values()):
            return arrived
        self._news.clear()
        if wait_s and not any(tail.has_some for tail in tails.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        return {slot: await tail.next(0) for slot, tail in tails.items()}

    def _convert(
        self,
        stream: str,
        messages: Sequence[Delivered],
        returning: Returning,
        records: list[Record],
    ) -> tuple[int, NotReturnable | None]:
        """Append what goes back to ``records``; the position after it (0: none), and the trouble.

        A message that cannot go back ends it, unless the policy lets it pass.
        """
        position = 0
        for message in messages:
            if (stream, message.seq) in self._skip:
                position = message.seq + 1
                continue
            try:
                refused = self._refused.get((stream, message.seq))
                record = returning.record(message._replace(trouble=refused) if refused else message)
            except NotReturnable as trouble:
                if self.route.on_poison == "stop":
                    return position, trouble
                self._pass_over(stream, trouble)
                position = message.seq + 1
                continue
            if record is None:
                self.progress.from_kafka += 1
            else:
                records.append(record)
            position = message.seq + 1
        return position, None

    async def _store(
        self, sink: KafkaSink, records: Sequence[Record], positions: Mapping[int, Position]
    ) -> None:
        if not records and not positions:
            return
        try:
            await sink.store(records, positions)
        except Refused as refused:
            self._on_refused(records, positions, refused)
        self._saved_at = time.monotonic()
        self.progress.positions.update(positions)
        self.progress.records += len(records)
        self.progress.payload_bytes += sum([len(record.value or b"") for record in records])
        self.progress.transactions += 1

    def _on_refused(
        self,
        records: Sequence[Record],
        positions: Mapping[int, Position],
        refused: Refused,
    ) -> NoReturn:
        """Remember a record that the broker refuses: the next session meets it as it comes to it.

        This one's client is not used for what is before it: librdkafka may have lost count of the
        partition's sequence numbers by then, and refuse all that follows.
        """
        place = refused.place
        if place is None:
            raise BridgeError(f"topic {self.topic}: Kafka refuses a record: {refused.reason}")
        record = records[place]
        slot = record.kafka_partition if self.route.mode == "dense" else 0
        reason = f"Kafka refuses it: {refused.reason}"
        self._refused[positions[slot].stream, record.offset] = reason
        raise SessionLost(f"sequence {record.offset} is refused") from refused

    def _pass_over(self, stream: str, trouble: NotReturnable) -> None:
        self._skip.add((stream, trouble.seq))
        self.progress.passed_over += 1
        logger.error(
            "stream %s sequence %d cannot go back and is passed over: %s",
            stream,
            trouble.seq,
            trouble.reason,
            extra={"event": "back_passed_over"},
        )

    def _cannot(self, trouble: NotReturnable, stream: str) -> CannotReturn:
        return CannotReturn(stream, trouble.seq, self.topic, trouble.reason)

    def _is_time_to_save(self, unsaved: dict[int, Position]) -> bool:
        """Also fills in all positions when it is time to write them again for their own sake."""
        age_s = time.monotonic() - self._saved_at
        if age_s > RENEW_S:
            unsaved.update({s: at for s, at in self.progress.positions.items() if s not in unsaved})
        return bool(unsaved) and age_s > SAVE_S

    async def _is_over(
        self,
        connection: Connection,
        goal: Mapping[int, int] | None,
        tails: Mapping[int, Tail],
        unsaved: Mapping[int, Position],
    ) -> bool:
        """Whether all that is to be moved was read, or it is told to stop.

        Where nothing more comes the stream's leader is asked: a replica may lag.
        """
        if self._stopping.is_set():
            return True
        if goal is None:
            return False
        for slot, tail in tails.items():
            at, end = unsaved.get(slot) or self.progress.positions[slot], goal.get(slot, 0)
            if at.next_seq > end:
                continue
            if not tail.is_idle:
                return False
            left = await first_from(connection, tail.stream, self._subject(slot), at.next_seq)
            if left is not None and left <= end:
                return False
        return True

    def _streams(self, partitions: int) -> dict[int, str]:
        """The streams by the slot their position is kept in: a partition's own, or 0 for all."""
        if "{partition}" not in self.route.stream:
            return {0: self.route.stream}
        return {p: self.route.stream.replace("{partition}", str(p)) for p in range(partitions)}

    def _subject(self, slot: int) -> str:
        if "{partition}" in self.route.stream:
            return self._mapping.partition_filter(slot)
        return self._mapping.route_filter

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def way_back_name(route: Route, topic: str | None = None) -> str:
    """The transactional id, group and consumer of a route's way back to a topic."""
    if topic is None or topic == route.topic:
        return f"{WAY_BACK}{route.name}"
    name = f"{WAY_BACK}{route.name}-{topic.replace('.', '-')}"
    if len(name) <= _NAME_MAX:
        return name
    mark = hashlib.blake2b(topic.encode("ascii"), digest_size=4).hexdigest()
    return f"{name[: _NAME_MAX - len(mark) - 1]}-{mark}"


def _as_unreachable(lost: Exception, nats: str) -> BridgeError:
    if isinstance(lost, BridgeError):
        return lost
    if isinstance(lost, ConnectionLost):
        return Unreachable("JetStream", nats, str(lost))
    return Unreachable("Kafka", "", str(lost))
