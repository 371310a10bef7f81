"""NATS and Kafka for the bridge's tests: each runs on every server and every Kafka there is."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from tests.bridge.rights import permit_nothing
from tests.helpers.empty_servers import EmptyServers
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, Kafka, KafkaNode, mock_kafka, real_kafka
from tests.helpers.registry import SchemaRegistry, real_registry, stand_in_registry
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED, REAL, Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def _empty_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmptyServers]:
    with EmptyServers(tmp_path_factory) as servers:
        yield servers


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
async def nats_server(
    request: pytest.FixtureRequest, _empty_servers: EmptyServers
) -> AsyncIterator[Server]:
    """A server with JetStream on file storage, empty; the test may do to it what it likes."""
    if request.param == REAL:
        need("nats")
    async with _empty_servers.one(request.param) as server:
        yield server


@pytest.fixture
async def server(_empty_servers: EmptyServers) -> AsyncIterator[Server]:
    """The embedded broker, where the server does not matter."""
    async with _empty_servers.one(EMBEDDED) as server:
        yield server


@pytest.fixture
async def real_nats_server(_empty_servers: EmptyServers) -> AsyncIterator[Server]:
    """The real nats-server, likewise."""
    need("nats")
    async with _empty_servers.one(REAL) as server:
        yield server


@pytest.fixture(scope="session")
def _real_kafka_node() -> Iterator[Kafka]:
    """One real Kafka for the whole session: it takes seconds to start."""
    need("kafka")
    with real_kafka() as kafka:
        yield kafka


@pytest.fixture(scope="session")
def _secured_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    need("kafka")
    node = KafkaNode(tmp_path_factory.mktemp("kafka"), secured=True)
    node.start()
    try:
        yield node
    finally:
        node.kill()


@pytest.fixture
def secured(_secured_node: KafkaNode) -> Iterator[KafkaNode]:
    """The session's real Kafka whose user `BRIDGE` may do nothing but what the test permits."""
    yield _secured_node
    permit_nothing(_secured_node)


@pytest.fixture(params=[MOCK, pytest.param(REAL_KAFKA, marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A mock of its own, or the session's real Kafka."""
    with ExitStack() as stack:
        if request.param == MOCK:
            yield stack.enter_context(mock_kafka())
        else:
            node: Kafka = request.getfixturevalue("_real_kafka_node")
            yield node


@pytest.fixture
def mock() -> Iterator[Kafka]:
    """librdkafka's mock, where the Kafka side does not matter."""
    with mock_kafka() as kafka:
        yield kafka


@pytest.fixture
def a_real_kafka(_real_kafka_node: Kafka) -> Kafka:
    """A real Kafka, for what the mock cannot do."""
    return _real_kafka_node


@pytest.fixture(scope="session")
def _real_registry() -> Iterator[SchemaRegistry]:
    """One real schema registry for the whole session: it takes seconds to start."""
    need("registry")
    with real_registry() as registry:
        yield registry


@pytest.fixture(params=["stand-in", REAL])
def registry(request: pytest.FixtureRequest) -> Iterator[SchemaRegistry]:
    """A stand-in of its own, or the session's real schema registry."""
    if request.param == REAL:
        node: SchemaRegistry = request.getfixturevalue("_real_registry")
        yield node
    else:
        with stand_in_registry() as registry:
            yield registry


@pytest.fixture
def topic() -> str:
    """A topic name nobody else uses, also on a Kafka that other runs share."""
    return f"flights-{os.getpid()}-{next(_numbers)}"
