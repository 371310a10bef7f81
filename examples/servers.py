"""What the examples talk to: your servers if you name them, embedded ones if not.

NATS_URL=nats://… and KAFKA_BOOTSTRAP=host:port choose; a real Kafka gets the topic made.
"""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import nats
from confluent_kafka.admin import AdminClient, NewTopic

from millstream import Broker
from millstream_bridge import MockKafka


@asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """A NATS server with JetStream; yields its URL. The embedded one keeps all in memory."""
    if url := os.environ.get("NATS_URL"):
        await _look_for(url)
        yield url
    else:
        async with Broker(jetstream=True) as broker:
            yield broker.url


async def _look_for(url: str) -> None:
    """End with one line when nobody is there; left to itself, a client would go on trying."""
    causes: list[Exception] = []

    async def note(cause: Exception) -> None:
        causes.append(cause)

    once = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0}
    try:
        client = await nats.connect(url, connect_timeout=1, error_cb=note, **once)
        await client.close()
    except (OSError, ValueError, nats.errors.Error) as error:
        print(f"no NATS server at {url}: {causes[-1] if causes else error}", file=sys.stderr)
        sys.exit(3)


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
