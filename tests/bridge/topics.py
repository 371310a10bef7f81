"""Topics by confluent-kafka alone: as who reads committed sees them, and in transactions."""

from typing import Any

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    IsolationLevel,
    KafkaError,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from millstream_bridge import Record
from millstream_bridge.model import TimestampType
from tests.helpers.kafka import MOCK, Kafka, await_true


def all_records(kafka: Kafka, topic: str) -> list[Record]:
    """Every committed record of the topic, per partition in order of offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "test",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,  # by default half a second at the end of each partition
        }
    )
    try:
        partitions = sorted(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        records: list[Record] = []
        ended: set[int] = set()
        while len(ended) < len(partitions):
            message: Any = consumer.poll(20)
            assert message is not None, "no answer in time"
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
                continue
            kind, timestamp_ms = message.timestamp()
            is_append = kind == TIMESTAMP_LOG_APPEND_TIME
            records.append(
                Record(
                    message.partition(),
                    message.offset(),
                    timestamp_ms,
                    TimestampType.LOG_APPEND if is_append else TimestampType.CREATE,
                    message.key(),
                    message.value(),
                    tuple(message.headers() or ()),
                )
            )
        return sorted(records, key=lambda record: (record.kafka_partition, record.offset))
    finally:
        consumer.close()


def transactional(kafka: Kafka, topic: str) -> Producer:
    """A producer that may begin a transaction; its id is the topic's name."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic})
    producer.init_transactions(20)
    return producer


def await_readable(kafka: Kafka, topic: str) -> None:
    """Wait until readers of committed records get all of the topic; the mock shows them all anyway.

    They do not at once: Kafka says that a transaction is over before its end is in the log.
    """
    if kafka.kind == MOCK:
        return
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    numbers = admin.list_topics(topic, timeout=20).topics[topic].partitions
    latest = {TopicPartition(topic, it): OffsetSpec.latest() for it in numbers}  # type: ignore[no-untyped-call]

    def ends(isolation: IsolationLevel) -> list[int]:
        found = admin.list_offsets(latest, isolation_level=isolation)
        return [int(found[place].result(20).offset) for place in latest]

    await_true(lambda: ends(IsolationLevel.READ_COMMITTED) == ends(IsolationLevel.READ_UNCOMMITTED))
