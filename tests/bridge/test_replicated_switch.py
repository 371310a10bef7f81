"""Three nodes, of which each in turn is gone: what is beside the move itself goes on with two."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from millstream_bridge import BackBridge, cut_over, roll_back, verify
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_back import PARTITIONS, natives, publish
from tests.bridge.test_cutover import commit, handled_by
from tests.bridge.topics import all_records
from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import Kafka
from tests.helpers.require import need
from tests.helpers.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.real_server]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    need("nats")
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
async def client(cluster: NatsCluster) -> AsyncIterator[Client]:
    connected = await nats.connect(
        cluster.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_unheard
    )
    await cluster.until_ready(connected)
    try:
        yield connected
        await cluster.clear(connected)
    finally:
        await connected.close()


async def _unheard(_: Exception) -> None:
    """A node is killed on purpose."""


@asynccontextmanager
async def without_leader(
    cluster: NatsCluster, client: Client, stream: str
) -> AsyncIterator[Server]:
    """Kill the stream's leader; one of the others in the block, where it has a new one."""
    leader = await cluster.leader_of(client, stream)
    leader.kill()
    try:
        yield await cluster.leader_of(client, stream)
    finally:
        await leader.restart()
        await cluster.until_current(client, stream)


async def test_a_switch_there_and_home_and_the_way_back_with_a_node_gone(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    records = [{"partition": n % PARTITIONS, "value": b"%d" % n} for n in range(12)]
    mock.produce(topic, [{**it, "key": b"K"} for it in records])
    route = a_route(topic, shared=True, replicas=3)
    there: dict[str, Any] = {"kafka": mock.bootstrap, "nats": ",".join(cluster.urls)}
    there["route"] = route
    await move_all(mock.bootstrap, there["nats"], route)
    commit(mock, topic, topic, dict.fromkeys(range(PARTITIONS), 1))
    groups: dict[str, Any] = {"kafka_group": topic, "group": topic, "is_stopped": True}

    async with without_leader(cluster, client, "FLIGHTS") as node:
        cut = await cut_over(**there, **groups, apply=True)
        await publish(node, range(10))
        seen = await handled_by(node, route, topic, 19)
    async with without_leader(cluster, client, "FLIGHTS"):
        brought = await BackBridge(**there).run(stop_at_end=True)
        await move_all(mock.bootstrap, there["nats"], route)
        proof = await verify(**there)
    async with without_leader(cluster, client, f"KV_MILLSTREAM_{topic}"):
        home = await roll_back(**there, **groups, apply=True)

    assert cut.applied, cut.problems
    assert len(seen) == len(set(seen)) == 19
    assert brought.records == 10
    assert len(natives(all_records(mock, topic), route)) == 10
    assert proof.equal, proof.difference
    assert home.applied, home.problems
