"""Three nodes: a switch, a way back and shared routes stand on as many as their stream does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from nats.aio.client import Client

from millstream_bridge import BackBridge, Route, cut_over, roll_back, verify
from millstream_bridge.errors import Unreachable
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.operation.fleet import Fleet
from millstream_bridge.project.file import Project
from millstream_bridge.project.rule import Rule
from tests.bridge.moves import a_route, move_all, until, until_moved
from tests.bridge.test_back import PARTITIONS, natives, publish
from tests.bridge.test_cutover import commit, handled_by
from tests.bridge.topics import all_records
from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.real_server]

T = TypeVar("T")


@asynccontextmanager
async def without_leader(
    cluster: NatsCluster, client: Client, stream: str, *others: str
) -> AsyncIterator[Server]:
    """Kill the stream's leader; who leads it in the block, where ``others`` are led again, too."""
    leader = await cluster.leader_of(client, stream)
    leader.kill()
    try:
        await cluster.until_ready(client)
        for other in others:
            await cluster.leader_of(client, other)
        yield await cluster.leader_of(client, stream)
    finally:
        await leader.restart()
        await cluster.until_current(client, stream)


async def begun_until_answered(begin: Callable[[], Awaitable[T]]) -> T:
    """Begin anew as long as nobody answers at the start, as who reads exit code 3 would do.

    A cluster that has just lost a node elects for longer than a start waits.
    """
    async with asyncio.timeout(120):
        while True:
            try:
                return await begin()
            except Unreachable:
                await asyncio.sleep(0.1)


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
    bucket = f"KV_MILLSTREAM_{topic}"

    # What has three replicas is only made while three nodes are there.
    cut = await cut_over(**there, **groups, apply=True)
    config = (await client.jetstream().stream_info(bucket)).config
    async with without_leader(cluster, client, "FLIGHTS", bucket) as node:
        await publish(node, range(10))
        seen = await handled_by(node, route, topic, 19)
    async with without_leader(cluster, client, "FLIGHTS"):
        brought = await begun_until_answered(lambda: BackBridge(**there).run(stop_at_end=True))
        await begun_until_answered(lambda: move_all(mock.bootstrap, there["nats"], route))
        proof = await begun_until_answered(lambda: verify(**there))
    async with without_leader(cluster, client, bucket):
        home = await begun_until_answered(lambda: roll_back(**there, **groups, apply=True))

    assert cut.applied, cut.problems
    assert config.num_replicas == 3
    assert len(seen) == len(set(seen)) == 19
    assert brought.records == 10
    assert len(natives(all_records(mock, topic), route)) == 10
    assert proof.equal, proof.difference
    assert home.applied, home.problems


@pytest.mark.parametrize(
    "mode", [{"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}]
)
async def test_processes_share_partitions_when_the_node_with_their_group_goes(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str, mode: dict[str, Any]
) -> None:
    """Their group's bucket has the replicas of the route, so that one goes on without the other."""
    mock.create_topic(topic, 4)
    route, url = a_route(topic, replicas=3, **mode), ",".join(cluster.urls)
    records = [{"partition": n % 4, "value": b"%d" % n} for n in range(400)]
    # A cluster that is just making a stream answers nobody who asks for it.
    await move_all(mock.bootstrap, url, route)
    a, b = (a_fleet(mock, url, route, name) for name in "ab")

    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for fleet in (a, b):
            tasks.create_task(fleet.run(stop_at_end=False), name="fleet")
        await until(lambda: all(it.bridges for it in (a, b)))
        bridges = [it.bridges[topic] for it in (a, b)]
        await asyncio.to_thread(mock.produce, topic, records)
        await until_moved(bridges, 4, 100)
        await cluster.until_current(client, "KV_MILLSTREAM_bridges")
        async with without_leader(cluster, client, "KV_MILLSTREAM_bridges"):
            a.stop()
            await asyncio.to_thread(mock.produce, topic, records)
            await until_moved([b.bridges[topic]], 4, 200, timeout_s=90)
        b.stop()

    for stream in {route.stream.replace("{partition}", str(p)) for p in range(4)}:
        await cluster.until_current(client, stream)
    proof = await verify(kafka=mock.bootstrap, nats=url, route=route)
    assert (proof.equal, proof.records) == (True, 800), proof.difference


def a_fleet(kafka: Kafka, url: str, route: Route, member: str) -> Fleet:
    """A process of ``run --group bridges``."""
    project = Project(
        kafka=kafka.bootstrap, nats=NatsTarget(url=url), rules=(Rule.of(route),), where="f"
    )
    return Fleet(
        project, tell=lambda _: None, on_ready=lambda _: None, group="bridges", member=member
    )
