"""The demo's two servers: embedded ones in processes of their own, or those it was pointed at.

Embedded, the broker is `millstream broker` with JetStream on files and the Kafka is librdkafka's
mock cluster (`millstream bridge kafka-mock`). On servers that were there before, the run's topic,
stream and buckets have names nobody else uses, and are deleted at the end.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from nats.aio.client import Client

from .processes import Child, ChildFailed, Family
from .settings import DemoError, DemoSettings, Names

CONNECT_S = 5
KAFKA_S = 10.0
RECONNECT_WAIT_S = 0.05
UNREACHABLE = 3


@dataclass(slots=True)
class Servers:
    """Where the two servers are; the children are None for servers that were there before."""

    nats: str
    kafka: str
    broker: Child | None
    mock: Child | None
    nats_version: str = ""


async def start_servers(settings: DemoSettings, names: Names, family: Family) -> Servers:
    """Start what was not given, and make the topic. Raises DemoError."""
    broker = start_broker(family, port=-1) if settings.nats is None else None
    mock = None
    if settings.kafka is None:
        topic = f"{names.topic}:{settings.partitions}"
        mock = family.start(
            "kafka",
            "millstream",
            "bridge",
            "kafka-mock",
            "--topic",
            topic,
            *_child_options(family, "kafka"),
        )
    try:
        for child in (broker, mock):
            if child is not None:
                await child.ready()
    except ChildFailed as error:
        raise DemoError(f"cannot start the {error.name}: {error.what}", UNREACHABLE) from None
    servers = Servers(
        nats=settings.nats or nats_url(broker),
        kafka=settings.kafka or (mock.facts["kafka"] if mock else ""),
        broker=broker,
        mock=mock,
    )
    if mock is None:
        await asyncio.to_thread(_create_topic, servers.kafka, names.topic, settings.partitions)
    return servers


def start_broker(family: Family, port: int) -> Child:
    """Start the embedded broker on the run's store; -1 is any free port."""
    return family.start(
        "broker",
        *("millstream", "broker", "-a", "127.0.0.1", "-p", str(port), "-js"),
        *("-sd", str(family.directory / "store")),
        *_child_options(family, "broker"),
    )


def _child_options(family: Family, name: str) -> tuple[str, ...]:
    return "--ready-file", str(family.directory / f"{name}.ready"), "--end-with-stdin"


def nats_url(broker: Child | None) -> str:
    """The URL in the broker's ready file."""
    if broker is None:
        return ""
    facts = broker.facts
    return str(facts.get("url") or facts.get("nats") or facts["urls"][0])


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without a user, password or token in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def server_version(client: Client) -> str:
    """The version the connected server tells, as in ``2.15.1``."""
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


def port_of(url: str) -> int:
    """The port in a NATS URL."""
    return urlsplit(url).port or 4222


async def connect(url: str) -> Client:
    """A connection that outlives restarts of the server. Raises DemoError."""
    client = Client()
    problems: list[Exception] = []

    async def on_error(error: Exception) -> None:
        problems.append(error)

    try:
        await client.connect(
            url,
            name="millstream demo",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECT_S,
            error_cb=on_error,
        )
    except (OSError, TimeoutError, ValueError, nats.errors.Error) as error:
        reason = _reason(problems[-1] if problems else error)
        raise DemoError(
            f"no NATS server at {without_credentials(url)}: {reason}", UNREACHABLE
        ) from None
    # Only now: with these from the start, a server that is not there would be waited for.
    client.options.update(
        allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=RECONNECT_WAIT_S
    )
    return client


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return " ".join(str(error).split()) or "no answer"


async def clean_up(client: Client, servers: Servers, names: Names) -> None:
    """Delete what the run made on servers that live on."""
    if servers.broker is None:
        jetstream = client.jetstream()
        for stream in names.streams:
            with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, TimeoutError):
                await jetstream.delete_stream(stream)
    if servers.mock is None:
        await asyncio.to_thread(_delete_topic, servers.kafka, names.topic)


def _create_topic(bootstrap: str, topic: str, partitions: int) -> None:
    # The flights are of 2013: with an ordinary retention Kafka would delete them at once.
    new = NewTopic(topic, partitions, 1, config={"retention.ms": "-1"})
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        admin.list_topics(timeout=CONNECT_S)
        admin.create_topics([new], operation_timeout=KAFKA_S)[topic].result(KAFKA_S)
    except (KafkaException, TimeoutError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        raise DemoError(
            f"Kafka at {bootstrap}: topic {topic} cannot be made: {reason}", UNREACHABLE
        ) from None


def _delete_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    with contextlib.suppress(KafkaException, TimeoutError):
        admin.delete_topics([topic], operation_timeout=KAFKA_S)[topic].result(KAFKA_S)
