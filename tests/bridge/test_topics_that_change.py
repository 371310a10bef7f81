"""Topics that grow, or go, while they are moved; only a real Kafka does that."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from millstream_bridge import Bridge, ConfigurationError, verify
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.moving.sharing import Members
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until, until_moved
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

pytestmark = pytest.mark.kafka

MODES: Mapping[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}


async def grow(kafka: Kafka, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    grown = admin.create_partitions([NewPartitions(topic, partitions)])
    await asyncio.to_thread(grown[topic].result, 20)


@pytest.mark.parametrize("mode", MODES)
async def test_added_partitions_are_moved_and_proven(
    nats_server: Server, a_real_kafka: Kafka, topic: str, mode: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"old"}])
    route, kafka, url = a_route(topic, **MODES[mode]), a_real_kafka.bootstrap, nats_server.url
    bridge = Bridge(kafka=kafka, nats=url, route=route, look_for_partitions_s=0.1)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records == 1)
        await grow(a_real_kafka, topic, 3)
        new = [{"partition": n % 3, "value": b"new"} for n in range(9)]
        await asyncio.to_thread(a_real_kafka.produce, topic, new)
        await until_moved([bridge], 3, 3)
        bridge.stop()

    stored = await stored_records(url, route, dense_partitions=3)
    assert offsets(stored) == {0: [0, 1, 2, 3], 1: [0, 1, 2], 2: [0, 1, 2]}
    proof = await verify(kafka=kafka, nats=url, route=route)
    assert (proof.equal, proof.records) == (True, 10), proof.difference


@pytest.mark.parametrize("mode", ["shared", "dense"])
async def test_added_partitions_are_somebodys_where_several_processes_share_them(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str, mode: str
) -> None:
    """The group has a slot for each partition there was: each new one is of one of these."""
    a_real_kafka.create_topic(topic, 2)
    route, kafka, url = a_route(topic, **MODES[mode]), a_real_kafka.bootstrap, real_nats_server.url

    async with (
        asyncio.timeout(90),
        Members(url, group="bridges", slots=2, member="a") as a,
        Members(url, group="bridges", slots=2, member="b") as b,
        asyncio.TaskGroup() as tasks,
    ):
        bridges = [
            Bridge(
                kafka=kafka, nats=url, route=route, share=it.share(route), look_for_partitions_s=0.1
            )
            for it in (a, b)
        ]
        for bridge in bridges:
            tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: [len(it.progress.epochs) for it in bridges] == [1, 1])
        await grow(a_real_kafka, topic, 6)
        new = [{"partition": n % 6, "value": b"new"} for n in range(60)]
        await asyncio.to_thread(a_real_kafka.produce, topic, new)
        await until_moved(bridges, 6, 10)
        held = [set(it.progress.epochs) for it in bridges]
        for bridge in bridges:
            bridge.stop()

    assert held[0] | held[1] == set(range(6))
    assert not held[0] & held[1]
    stored = await stored_records(url, route, dense_partitions=6)
    assert offsets(stored) == {partition: [*range(10)] for partition in range(6)}


@pytest.mark.parametrize("mode", MODES)
async def test_a_topic_that_is_deleted_ends_the_run_with_its_name_and_leaves_what_is_stored(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str, mode: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    a_real_kafka.produce(topic, [{"partition": 0, "value": b"v"}] * 5)
    route, kafka, url = a_route(topic, **MODES[mode]), a_real_kafka.bootstrap, real_nats_server.url
    bridge = Bridge(kafka=kafka, nats=url, route=route, look_for_partitions_s=0.1)
    run = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.records == 5 or run.done())

    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result, 20)

    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match=f"topic {topic}"):
            await run
    with pytest.raises(ConfigurationError, match=f"topic {topic}"):
        await move_all(kafka, url, route)
    assert offsets(await stored_records(url, route, dense_partitions=1)) == {0: [*range(5)]}


async def test_a_way_back_into_a_topic_that_is_deleted_ends_with_its_name(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    route, kafka, url = a_route(topic, shared=True), a_real_kafka.bootstrap, real_nats_server.url
    await move_all(kafka, url, route)
    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result, 20)

    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match=f"topic {topic}"):
            await BackBridge(kafka=kafka, nats=url, route=route).run(stop_at_end=True)
