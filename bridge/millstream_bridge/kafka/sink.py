"""The Kafka side of the way back: records and the position they were read to, in one transaction.

**Once.** A transaction holds a batch of records and, as a consumer group's offsets, how far the
stream was read for it. Kafka shows both or neither to whoever reads committed, so a kill at any
moment costs nothing: the next start reads the position and goes on. The group
(``millstream-back-<route>``) has no members; it is only a name to keep offsets under. Kafka forgets
offsets that were not written for ``offsets.retention.minutes`` (a week): `store` without records
writes them again, and what is to be done when they are gone is the caller's (see `back.position`).

**One writer.** The transactional id is the group's name. `open` takes it over: from then on every
transaction of whoever had it before fails (`Fenced`), and what it left half done is aborted. Only
after that the position is read, so nobody can move it any more.

**What a failure means.** Kafka tells three kinds. Of a passing one the client tries again by
itself. After one that only ends the transaction it is aborted, and `SessionLost` sends the caller
back to the position. A final one ends the client; the next `open` makes a new one. A record that
the broker refuses is named by its place in the batch, in `Refused`. Kafka's limit for a record is
really one for what travels together: when it is met, batches are kept below it from then on, and
only a record that is refused after that is too large itself.

**A client that hangs.** librdkafka (2.16 still) lets ``send_offsets_to_transaction`` wait without
end where the group's coordinator went down and moved on: it asks a second time who that is only
when another broker comes or goes, and its timeout is looked at nowhere. So a transaction has
`STORE_S`; after that its client is left to itself, in its thread, and `SessionLost` leads to a new
one. What the old one may still do, the new one's `open` has fenced off.

Readers that do not ask for ``isolation.level=read_committed`` see records of aborted transactions,
and so the same record twice; nothing written to Kafka can hide them from those.

librdkafka's mock cluster takes transactions, but keeps no offsets from them, shows what was never
committed, and fences nobody.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from ..errors import BridgeError, ConfigurationError, SessionLost, Unreachable
from ..model import Record
from .admin import KafkaAdmin, TopicConfig
from .clients import Complaints, client_logger, error_text
from .worker_thread import WorkerThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSACTION_TIMEOUT_MS = 15_000
"""After a crash, committed readers of the topic wait at most so long for a transaction's end."""
STORE_S = 2 * TRANSACTION_TIMEOUT_MS / 1000
"""So long a transaction may take: a record is sent within the one timeout or not at all, and from
the first one on Kafka keeps the transaction open for the other."""
CLOSE_S = 1.0
LOOK_S = 5.0
"""So long a Kafka may take to say that it is there; a transaction may take longer."""
BATCH_BYTES = 512 << 10
_FULL_QUEUE_S = 0.1
_DELIVER_S = 0.2
_SCHEMA = "millstream.back/1"


class Position(NamedTuple):
    """The next sequence to be read of a stream; ``created`` tells it from one of the same name."""

    stream: str
    created: str
    next_seq: int


class Fenced(BridgeError):
    """Somebody else writes under this transactional id now."""


class Refused(Exception):
    """The broker does not take the record at this place of the batch; nothing is stored."""

    def __init__(self, place: int | None, reason: str, *, is_too_large: bool = False) -> None:
        super().__init__(reason)
        self.place, self.reason, self.is_too_large = place, reason, is_too_large


class KafkaSink:
    """Writes to one topic under one transactional id; every call runs in a thread of its own."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        name: str,
        *,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        """``name`` is both the transactional id and the group; ``options`` are librdkafka's."""
        self.bootstrap, self.topic, self.name = bootstrap, topic, name
        self._timeout_s = timeout_s
        self._thread = WorkerThread("kafka sink")
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._refused: list[tuple[Message, KafkaError]] = []
        self._is_closed = False
        self._complaints = Complaints()
        self._options = dict(options or {})
        self._batch_bytes = BATCH_BYTES
        self._common = {"bootstrap.servers": bootstrap, "client.id": name, **(options or {})}

    @property
    def is_open(self) -> bool:
        """Whether there is a client that held the transactional id when it was last heard of."""
        return self._producer is not None

    async def partition_count(self) -> int:
        """How many partitions the topic has. Unreachable, ConfigurationError: no such topic."""
        return await self._run(self._partition_count)

    async def open(self, slots: Sequence[int]) -> dict[int, Position]:
        """Take the transactional id over and read the positions; a slot without one is left out.

        ``slots`` are numbers of partitions under which positions are kept. Unreachable,
        ConfigurationError.
        """
        return await self._run(lambda: self._open(slots))

    async def store(self, records: Sequence[Record], positions: Mapping[int, Position]) -> None:
        """Records in this order and the positions after them, in one transaction.

        Fenced, SessionLost (nothing is stored, or the answer was lost: read the position), Refused.
        """
        try:
            async with asyncio.timeout(STORE_S):
                await self._run(lambda: self._store(records, positions))
        except TimeoutError:
            self._abandon()
            raise SessionLost(
                f"transaction of {self.name}: Kafka's client has not ended it in {STORE_S:g} s"
            ) from None
        except Refused as refused:
            if not refused.is_too_large or self._batch_bytes < BATCH_BYTES:
                raise
            self._batch_bytes = await self._limit()
            await self._run(self._drop)
            raise SessionLost(
                f"topic {self.topic} takes batches of {self._batch_bytes} bytes"
            ) from refused

    def _abandon(self) -> None:
        """Leave the client to itself, and its thread, which ends when the client lets it."""
        self._producer = None
        self._thread.stop()
        self._thread = WorkerThread("kafka sink")

    async def close(self) -> None:
        """Leave; what is not committed is aborted. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._thread.end(self._close, CLOSE_S)

    async def _limit(self) -> int:
        """The topic's limit, a little less; each record alone where it is not to be seen."""
        admin = KafkaAdmin(self.bootstrap, options=self._options)
        try:
            found = (await admin.configs([self.topic])).get(self.topic)
        finally:
            await admin.close()
        limit = found.number("max.message.bytes") if isinstance(found, TopicConfig) else -1
        return min(BATCH_BYTES - 1, limit * 9 // 10) if limit > 0 else 1

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._thread.run(call)

    # in the thread

    def _partition_count(self) -> int:
        try:
            metadata = self._offsets().list_topics(self.topic, timeout=LOOK_S)
        except KafkaException as error:
            raise self._unreachable(error) from error
        topic = metadata.topics[self.topic]
        if topic.error is not None or not topic.partitions:
            reason = topic.error.str() if topic.error is not None else "it has no partitions"
            raise ConfigurationError(f"topic {self.topic} at {self.bootstrap}: {reason}")
        return len(topic.partitions)

    def _offsets(self) -> Consumer:
        """The client that reads the positions; it never joins the group."""
        if self._consumer is None:
            settings = {
                **self._common,
                "group.id": self.name,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "allow.auto.create.topics": False,
                "error_cb": self._complaints.note,
            }
            self._consumer = self._made(lambda: Consumer(settings, logger=client_logger))
        return self._consumer

    def _open(self, slots: Sequence[int]) -> dict[int, Position]:
        self._drop()
        settings: dict[str, Any] = {
            **self._common,
            "transactional.id": self.name,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            "delivery.timeout.ms": TRANSACTION_TIMEOUT_MS,
            "delivery.report.only.error": True,
            # A record over batch.size travels alone: only the broker's own limit counts.
            "message.max.bytes": 1_000_000_000,
            "batch.size": self._batch_bytes,
            "linger.ms": 5,
            "retry.backoff.ms": 10,
            "allow.auto.create.topics": False,
            "on_delivery": self._on_delivery,
            "error_cb": _ignore,
        }
        producer = self._made(lambda: Producer(settings, logger=client_logger))
        try:
            producer.init_transactions(self._timeout_s)
            places = [TopicPartition(self.topic, slot) for slot in slots]
            committed = self._offsets().committed(places, timeout=self._timeout_s)
        except KafkaException as error:
            code = error.args[0].code()
            if code in _FORBIDDEN:
                reason = error.args[0].str()
                raise ConfigurationError(f"Kafka at {self.bootstrap}: {reason}") from error
            raise self._unreachable(error) from error
        self._producer = producer
        found = {}
        for place in committed:
            if place.offset >= 0:
                found[place.partition] = _position(self.name, place)
        return found

    def _store(self, records: Sequence[Record], positions: Mapping[int, Position]) -> None:
        producer = self._producer
        if producer is None:
            raise SessionLost("the way back is not open")
        self._refused.clear()
        try:
            producer.begin_transaction()
            self._produce(producer, records)
            self._deliver(producer)
            producer.send_offsets_to_transaction(
                [_place(self.topic, slot, at) for slot, at in positions.items()],
                self._offsets().consumer_group_metadata(),
                self._timeout_s,
            )
            self._commit(producer)
        except KafkaException as error:
            raise self._after(producer, error, records) from error

    def _produce(self, producer: Producer, records: Sequence[Record]) -> None:
        topic = self.topic
        for record in records:
            headers: list[Any] = list(record.headers)
            while True:
                try:
                    producer.produce(
                        topic,
                        value=record.value,
                        key=record.key,
                        partition=record.kafka_partition,
                        timestamp=record.timestamp_ms,
                        headers=headers,
                    )
                    break
                except BufferError:
                    producer.poll(_FULL_QUEUE_S)

    def _deliver(self, producer: Producer) -> None:
        """Send what is queued. The commit would do it too, but tell of no record refused.

        With one refused the transaction is lost, and what is queued behind it goes nowhere.
        """
        deadline = time.monotonic() + self._timeout_s
        while producer.flush(_DELIVER_S) and not self._refused and time.monotonic() < deadline:
            pass

    def _commit(self, producer: Producer) -> None:
        """Commit; asks again while the answer is late, as Kafka's protocol wants it."""
        while True:
            try:
                producer.commit_transaction(self._timeout_s)
            except KafkaException as error:
                is_wanted = producer is self._producer and not self._is_closed
                if error.args[0].retriable() and is_wanted:
                    continue
                raise
            return

    def _after(
        self, producer: Producer, error: KafkaException, records: Sequence[Record]
    ) -> Exception:
        """What a failed transaction means; aborts it where it can be."""
        fault = error.args[0]
        if producer is not self._producer:
            return error  # to nobody: it was abandoned
        if fault.code() in _FENCED:
            self._drop()
            return Fenced(
                f"topic {self.topic}: another bridge has taken over the way back ({self.name})"
            )
        if fault.fatal() or not fault.txn_requires_abort():
            self._drop()
            return SessionLost(f"transaction of {self.name}: {fault.str()}")
        try:
            producer.abort_transaction(self._timeout_s)
        except KafkaException as failure:
            self._drop()
            logger.debug("abort: %s", failure, extra={"event": "abort_failed"})
        if self._refused:
            message, reason = self._refused[0]
            is_too_large = reason.code() == KafkaError.MSG_SIZE_TOO_LARGE
            return Refused(_index(message, records), reason.str(), is_too_large=is_too_large)
        return SessionLost(f"transaction of {self.name}: {fault.str()}")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Only of records that were not stored; of those, only what the broker minds itself."""
        if error is not None and error.code() in _REFUSALS:
            self._refused.append((message, error))

    def _drop(self) -> None:
        """Forget the client; its purge keeps its end from waiting for anybody."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def _close(self) -> None:
        producer = self._producer
        if producer is not None:
            producer.purge()
        self._producer = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except KafkaException as error:
            raise ConfigurationError(f"Kafka client: {error_text(error)}") from error

    def _unreachable(self, error: KafkaException) -> Unreachable:
        serve = None if self._consumer is None else lambda: self._offsets().poll(0)
        return self._complaints.unreachable(self.bootstrap, error, serve)


_FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
    }
)
_FORBIDDEN = frozenset(
    {
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
_REFUSALS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


def _ignore(error: KafkaError) -> None:
    logger.debug("kafka: %s", error.str(), extra={"event": "kafka_error"})


def _place(topic: str, slot: int, position: Position) -> TopicPartition:
    about = {"schema": _SCHEMA, "stream": position.stream, "created": position.created}
    return TopicPartition(topic, slot, position.next_seq, metadata=json.dumps(about))


def _position(name: str, place: TopicPartition) -> Position:
    try:
        about = json.loads(place.metadata or "")
        return Position(str(about["stream"]), str(about["created"]), place.offset)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"Kafka group {name}: its offset of topic {place.topic} partition {place.partition}"
            " is not a position of the way back: is the name used for something else?"
        ) from error


def _index(message: Message, records: Sequence[Record]) -> int | None:
    """Where in the batch a message the broker refused is; by what the client still knows of it.

    That is not its headers. Of records that differ in those alone the largest is meant: nothing but
    its size is what Kafka takes of one and not of the other.
    """
    kept = (message.partition(), message.key(), message.value())
    alike = [
        place
        for place, record in enumerate(records)
        if (record.kafka_partition, record.key, record.value) == kept
    ]
    return max(alike, key=lambda place: _header_bytes(records[place]), default=None)


def _header_bytes(record: Record) -> int:
    return sum([len(name) + len(value or b"") for name, value in record.headers])
