"""NATS and Kafka for the bridge's tests: each runs on every server and every Kafka there is."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import nats
import pytest
from nats.aio.client import Client

from tests.bridge.elsewhere import CLUSTER, RealInstead, a_node, add_options, is_for
from tests.bridge.rights import permit_nothing
from tests.helpers.cluster import NatsCluster
from tests.helpers.empty_servers import EmptyServers
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, Kafka, KafkaNode, mock_kafka, real_kafka
from tests.helpers.kafka_cluster import KafkaCluster
from tests.helpers.registry import SchemaRegistry, real_registry, stand_in_registry
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED, REAL, Server

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if is_for(config, item)]


@pytest.fixture(scope="session")
def _nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    need("nats")
    with NatsCluster(tmp_path_factory.mktemp("nats-cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three nodes, of which a test may kill some."""
    need("nats")
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
async def client(cluster: NatsCluster) -> AsyncIterator[Client]:
    """Of the cluster, which is empty again after the test."""

    async def unheard(_: Exception) -> None:
        """A node is killed on purpose."""

    connected = await nats.connect(
        cluster.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=unheard
    )
    await cluster.until_ready(connected)
    try:
        yield connected
        await cluster.clear(connected)
    finally:
        await connected.close()


@asynccontextmanager
async def _a_server(
    request: pytest.FixtureRequest, servers: EmptyServers, kind: str
) -> AsyncIterator[Server]:
    """One of that kind, or what is in its place."""
    if request.config.getoption("--nats", None):
        async with a_node(request.getfixturevalue("_nats_cluster")) as node:
            yield node
    else:
        async with servers.one(kind) as server:
            yield server


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
    async with _a_server(request, _empty_servers, request.param) as server:
        yield server


@pytest.fixture
async def server(
    request: pytest.FixtureRequest, _empty_servers: EmptyServers
) -> AsyncIterator[Server]:
    """The embedded broker, where the server does not matter."""
    async with _a_server(request, _empty_servers, EMBEDDED) as server:
        yield server


@pytest.fixture
async def real_nats_server(
    request: pytest.FixtureRequest, _empty_servers: EmptyServers
) -> AsyncIterator[Server]:
    """The real nats-server, likewise."""
    need("nats")
    async with _a_server(request, _empty_servers, REAL) as server:
        yield server


@pytest.fixture(scope="session")
def _real_kafka_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kafka]:
    """One real Kafka for the whole session: it takes seconds to start."""
    need("kafka")
    chosen = request.config.getoption("--kafka", None)
    if chosen == CLUSTER:
        with KafkaCluster(tmp_path_factory.mktemp("kafka-cluster")) as cluster:
            yield RealInstead(kind=REAL_KAFKA, bootstrap=cluster.bootstrap, replicas=3)
        return
    with real_kafka() as kafka:
        yield kafka if not chosen else RealInstead(kind=REAL_KAFKA, bootstrap=kafka.bootstrap)


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
def mock(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """librdkafka's mock, where the Kafka side does not matter; or what is in its place."""
    if request.config.getoption("--kafka", None):
        node: RealInstead = request.getfixturevalue("_real_kafka_node")
        yield node.as_a_mock()
        node.delete_topics()  # a mock's go with it
        return
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
