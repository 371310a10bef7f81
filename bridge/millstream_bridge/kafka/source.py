"""The Kafka side on confluent-kafka: one topic, partitions assigned by hand, positions of our own.

No consumer group is joined and nothing is committed: the stream says where to go on. Offsets that
Kafka no longer has are an error (``auto.offset.reset`` is ``error``), never a jump. Only what
transactions committed is read. Checksums are checked: nobody else would notice a spoilt byte, as
what verify reads comes from here too. The client blocks, so each source has one thread, which also
keeps its calls in order.

librdkafka's mock cluster is the same client against another bootstrap. It has no transactions to
abort and always answers -1 when a timestamp is looked up; neither is asked of it here. Nor are its
checksums checked.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from ..errors import BridgeError, ConfigurationError, OffsetGone, RecordError, Unreachable
from ..model import Positions, Record, TimestampType, Watermarks
from ..ports import Polled, Source
from .clients import (
    CLIENT_ID,
    LEADER_MOVES,
    MOCK_CLUSTER,
    Complaints,
    client_logger,
    error_text,
    refuse_ours,
    with_remedy,
)
from .identity import TopicIdentity
from .worker_thread import WorkerThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_S = 0.5
LOOK_S = 0.5
"""How long a look at the topic's size may hold up reading."""
LEADER_RETRY_S = 0.1

_OURS: Final[Mapping[str, object]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
    "check.crcs": True,
}
"""Without these something could be lost, moved twice or never end."""
_TYPES = {TIMESTAMP_LOG_APPEND_TIME: TimestampType.LOG_APPEND}


class KafkaSource:
    """A `Source` over one topic. ``options`` are librdkafka's, for security and the like.

    ``leader_wait_s``: how long `watermarks` asks again where a partition has no leader.

    ConfigurationError: an option contradicts what the bridge needs.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        leader_wait_s: float = 5.0,
        queued_kbytes_max: int = 16_384,
    ) -> None:
        self.bootstrap = bootstrap
        self._topic = topic
        self._timeout_s = timeout_s
        self._leader_wait_s = leader_wait_s
        self._thread = WorkerThread("kafka")
        self._options = options
        self._identity: TopicIdentity | None = None
        self._consumer: Consumer | None = None
        self._is_heard = False
        self._is_assigned = False
        self._is_closed = False
        self._pause = threading.Event()
        self._complaints = Complaints()
        refuse_ours(options, _OURS)
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "group.id": f"millstream-bridge-{topic}",
            "client.id": CLIENT_ID,
            "fetch.wait.max.ms": 20,
            "fetch.message.max.bytes": 1 << 20,
            "fetch.max.bytes": 8 << 20,
            # By default a full queue is not filled again for a second.
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": queued_kbytes_max,
            "queued.min.messages": 50_000,
            "reconnect.backoff.max.ms": 1_000,
            "topic.metadata.refresh.interval.ms": 10_000,
            **(options or {}),
            **_OURS,
        }

    @property
    def place(self) -> tuple[str, str]:
        return "Kafka", self.bootstrap

    @property
    def is_heard(self) -> bool:
        """Whether Kafka has answered, and has not gone away since."""
        return self._is_heard

    async def watermarks(self) -> dict[int, Watermarks]:
        """Low and high of every partition of the topic."""
        return await self._run(self._watermarks)

    async def topic_id(self) -> str | None:
        """The topic's id, asked by a client of its own: while a broker is away it may take long."""
        if self._identity is None:
            self._identity = TopicIdentity(self.bootstrap, self._topic, options=self._options)
        return await self._identity.id()

    async def partition_count(self) -> int:
        """How many partitions the topic has now."""
        return len(await self._run(lambda: self._partitions(LOOK_S)))

    async def known_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """The high watermarks that came with the latest fetches; asks nobody."""
        return await self._run(lambda: self._known_ends(partitions))

    async def assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        """Read from these positions on; a partition without one from its first kept record."""
        await self._run(lambda: self._assign(positions, partitions))

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        """What is there now, or the first to come within ``wait_s``."""
        return await self._run(lambda: self._poll(records_max, wait_s))

    async def close(self) -> None:
        """Close the clients and end their threads."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pause.set()
        if self._identity is not None:
            self._identity.close()
        await self._thread.end(self._close, CLOSE_S)

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._thread.run(call)

    # in the thread

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _client(self) -> Consumer:
        if self._consumer is None:
            try:
                self._consumer = Consumer(
                    {**self._config, "error_cb": self._on_error}, logger=client_logger
                )
            except KafkaException as error:
                raise ConfigurationError(f"Kafka client: {error_text(error)}") from error
        return self._consumer

    def _on_error(self, error: KafkaError) -> None:
        """Say once that Kafka is away, until it is heard of again; the client tries by itself."""
        self._complaints.note(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._is_heard:
            self._is_heard = False
            logger.warning(
                "kafka at %s is away: %s",
                self.bootstrap,
                error.str(),
                extra={"event": "kafka_away"},
            )
        else:
            logger.debug("kafka: %s", error.str(), extra={"event": "kafka_error"})

    def _partitions(self, timeout_s: float) -> list[int]:
        try:
            metadata = self._complaints.metadata(
                self.bootstrap,
                lambda it: self._client().list_topics(self._topic, timeout=it),
                timeout_s,
                self._serve,
            )
        except KafkaException as error:
            raise self._unreachable(error) from error
        self._is_heard = True
        self._complaints.forget()
        if str(metadata.cluster_id).startswith(MOCK_CLUSTER):
            self._check_no_sums()
        topic = metadata.topics[self._topic]
        fault: KafkaError | None = topic.error
        if fault is not None and fault.code() in _PASSING_ERRORS:
            raise Unreachable("Kafka", self.bootstrap, f"topic {self._topic}: {fault.str()}")
        if fault is not None or not topic.partitions:
            reason = with_remedy(fault) if fault is not None else "it has no partitions"
            raise ConfigurationError(f"topic {self._topic} at {self.bootstrap}: {reason}")
        return sorted(topic.partitions)

    def _check_no_sums(self) -> None:
        """The mock writes the markers of transactions without a checksum."""
        if self._config["check.crcs"] and not self._is_assigned:
            self._config["check.crcs"] = False
            self._client().close()
            self._consumer = None

    def _watermarks(self) -> dict[int, Watermarks]:
        marks = {}
        for partition in self._partitions(self._timeout_s):
            marks[partition] = self._watermarks_of(partition)
        return marks

    def _watermarks_of(self, partition: int) -> Watermarks:
        """Asks again while the partition's leader moves or, on a new topic, is not there yet.

        Once more, too, where it does not answer: one that was just killed takes all the time there
        is, and by then another one may lead.
        """
        place = TopicPartition(self._topic, partition)
        give_up_at = time.monotonic() + self._leader_wait_s
        was_silent = False
        while True:
            try:
                found = self._client().get_watermark_offsets(place, timeout=self._timeout_s)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError._TIMED_OUT and not was_silent and self._leader_wait_s:
                    was_silent = True
                # The topic has the partition: the client means that it knows no leader.
                elif code not in LEADER_MOVES and code != KafkaError._UNKNOWN_PARTITION:
                    raise self._unreachable(error) from error
                elif self._is_closed or time.monotonic() > give_up_at:
                    reason = f"topic {self._topic} partition {partition} has no leader"
                    raise Unreachable("Kafka", self.bootstrap, reason) from error
                self._partitions(self._timeout_s)
                self._pause.wait(LEADER_RETRY_S)
                continue
            if found is None:
                raise Unreachable("Kafka", self.bootstrap, f"no offsets of partition {partition}")
            return Watermarks(*found)

    def _known_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        ends = {}
        for partition in partitions:
            place = TopicPartition(self._topic, partition)
            _, high = self._client().get_watermark_offsets(place, cached=True)
            if high >= 0:
                ends[partition] = high
        return ends

    def _assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        if self._consumer is None and not self._is_assigned:
            self._partitions(self._timeout_s)  # whether it is the mock
        if self._is_assigned and self._consumer is not None:
            # A client that was reading may still hold records of the assignment before, and one of
            # those let through would be a hole. A new client cannot.
            self._consumer.close()
            self._consumer = None
        self._is_assigned = True
        self._client().assign(
            [
                TopicPartition(self._topic, partition, positions.get(partition, OFFSET_BEGINNING))
                for partition in partitions
            ]
        )

    def _poll(self, records_max: int, wait_s: float) -> Polled:
        consumer = self._client()
        messages: list[Any] = consumer.consume(1, wait_s)
        if messages and records_max > 1:
            self._is_heard = True
            messages += consumer.consume(records_max - 1, 0)
        records: list[Record] = []
        ends: dict[int, int] = {}
        append, types, make = records.append, _TYPES, tuple.__new__
        for message in messages:
            error = message.error()
            if error is not None:
                failure = self._on_message_error(error, message, ends)
                if failure is not None:
                    return Polled(records, ends, failure)
                continue
            try:
                headers = message.headers()
            except (KafkaException, UnicodeDecodeError) as unreadable:
                reason = f"its headers cannot be read: {unreadable}"
                return Polled(records, ends, RecordError(self._topic, *_place(message), reason))
            kind, timestamp_ms = message.timestamp()
            fields = (
                message.partition(),
                message.offset(),
                timestamp_ms,
                types.get(kind, TimestampType.CREATE),
                message.key(),
                message.value(),
                tuple(headers) if headers else (),
            )
            append(make(Record, fields))  # half the cost of Record(*fields)
        return Polled(records, ends)

    def _on_message_error(
        self, error: KafkaError, message: Message, ends: dict[int, int]
    ) -> BridgeError | None:
        """Note an end of a partition, log what passes, return what does not."""
        code, (partition, offset) = error.code(), _place(message)
        if code == KafkaError._PARTITION_EOF:
            ends[partition] = offset
            return None
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if _TRUNCATED in error.str():
                return RecordError(self._topic, partition, self._position(partition), _CUT_OFF)
            if offset < 0:
                offset = self._position(partition)
            return OffsetGone(self._topic, partition, offset, self._low_of(partition))
        if code in _CORRUPT:
            reason = (
                f"the batch here cannot be read: {error.str()}; let a replica lead that has it"
                " whole, or delete the records up to behind it and let on_gap continue"
            )
            return RecordError(self._topic, partition, offset, reason)
        if code in _FINAL_ERRORS:
            reason = with_remedy(error)
            return ConfigurationError(f"topic {self._topic} at {self.bootstrap}: {reason}")
        return self._unless_passing(error)

    def _unless_passing(self, error: KafkaError) -> BridgeError | None:
        if error.fatal():
            return Unreachable("Kafka", self.bootstrap, error.str())
        self._on_error(error)
        return None

    def _position(self, partition: int) -> int:
        """The next offset to be read, -1 if the client does not know."""
        (place,) = self._client().position([TopicPartition(self._topic, partition)])
        return max(-1, place.offset)

    def _low_of(self, partition: int) -> int | None:
        place = TopicPartition(self._topic, partition)
        try:
            found = self._client().get_watermark_offsets(place, timeout=self._timeout_s)
        except KafkaException:
            return None
        return int(found[0])

    def _unreachable(self, error: KafkaException) -> BridgeError:
        return self._complaints.unreachable(self.bootstrap, error, self._serve)

    def _serve(self) -> None:
        """Let the client tell what it has to."""
        if not self._is_assigned:  # one that reads might hand out a record, which would be lost
            self._client().poll(0)


def source_of(
    source: Source | None, kafka: str | None, topic: str, options: Mapping[str, str] | None
) -> Source:
    """The source that was given, or the topic of this Kafka; ConfigurationError: not one of them.

    ``options`` are for Kafka.
    """
    if (source is None) == (kafka is None):
        raise ConfigurationError(f"topic {topic}: one of kafka and source is needed")
    if source is not None:
        return source
    assert kafka is not None
    return KafkaSource(kafka, topic, options=options)


_TRUNCATED = KafkaError(KafkaError._LOG_TRUNCATION).str()
"""The client finds that by the leaders' epochs, also where the log is long enough again."""
_CUT_OFF = (
    "Kafka has lost records that were read: a broker that lacked them leads the partition now, and"
    " what it has stored since is at the same offsets. `verify` shows which records of the stream"
    " are no longer in Kafka; move the topic into a new stream"
)
_PASSING_ERRORS = frozenset({KafkaError.LEADER_NOT_AVAILABLE})
"""What a broker that is just starting says of a topic it has."""

_CORRUPT = frozenset(
    {
        KafkaError._BAD_MSG,
        KafkaError._BAD_COMPRESSION,
        KafkaError._NOT_IMPLEMENTED,
        KafkaError._UNDERFLOW,
        KafkaError.INVALID_MSG,
    }
)
"""A batch that is damaged, or packed in a way the client does not know.

The client may go on behind it, or ask for it for ever.
"""

_FINAL_ERRORS = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    }
)


def _place(message: Message) -> tuple[int, int]:
    """Partition and offset, -1 where the client has none."""
    partition, offset = message.partition(), message.offset()
    return -1 if partition is None else partition, -1 if offset is None else offset
