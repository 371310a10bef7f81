"""What the examples talk to: your servers if you name them, embedded ones if not.

NATS_URL=nats://… and KAFKA_BOOTSTRAP=host:port choose; a real Kafka gets the topic made.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from confluent_kafka.admin import AdminClient, NewTopic

from millstream import Broker
from millstream_bridge import MockKafka


@asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """A NATS server with JetStream; yields its URL. The embedded one keeps all in memory."""
    if url := os.environ.get("NATS_URL"):
        yield url
    else:
        async with Broker(jetstream=True) as broker:
            yield broker.url


@contextmanager
def kafka_topic(topic: str, partitions: int) -> Iterator[str]:
    """A Kafka with this topic; yields its bootstrap address."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(20)
        yield bootstrap
        admin.delete_topics([topic])[topic].result(20)
    else:
        with MockKafka({topic: partitions}) as kafka:
            yield kafka.bootstrap
