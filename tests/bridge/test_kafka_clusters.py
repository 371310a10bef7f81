"""A Kafka in the field: compressed batches, leaders that change while records are read, racks."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from millstream_bridge import Bridge, MockKafka, barrier, verify
from millstream_bridge.back.runner import BackBridge
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until
from tests.bridge.test_back import natives, publish
from tests.bridge.topics import all_records
from tests.helpers.kafka import MOCK, REAL, Kafka
from tests.helpers.kafka_cluster import KafkaCluster, Node
from tests.helpers.require import need
from tests.helpers.servers import Server

PARTITIONS = 3
MODES: Mapping[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three brokers of a real Kafka."""
    need("kafka")
    with KafkaCluster(tmp_path_factory.mktemp("brokers")) as cluster:
        yield cluster


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_arrive_as_they_were(
    nats_server: Server, kafka: Kafka, topic: str, codec: str
) -> None:
    kafka.create_topic(topic, 1)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap, "compression.type": codec, "linger.ms": 50}
    )
    for n in range(500):
        producer.produce(topic, b"leg %d " % n * 20, b"N%d" % n, partition=0)
    assert producer.flush(20) == 0

    await move_all(kafka.bootstrap, nats_server.url, a_route(topic))

    stored = await stored_records(nats_server.url, a_route(topic))
    assert [(one.key, one.value) for one in stored[0]] == [
        (b"N%d" % n, b"leg %d " % n * 20) for n in range(500)
    ]


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_leaders_that_change_while_it_reads_cost_nothing(
    nats_server: Server, topic: str, shared: bool
) -> None:
    with MockKafka({topic: 3}, brokers=3) as cluster:
        kafka = Kafka(kind=MOCK, bootstrap=cluster.bootstrap, mock=cluster)
        route = a_route(topic, shared=shared)
        bridge = Bridge(kafka=cluster.bootstrap, nats=nats_server.url, route=route)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(bridge.run(), name="bridge")
            for turn in range(6):
                for partition in range(3):
                    cluster.set_leader(topic, partition, (turn + partition) % 3 + 1)
                records = [{"partition": n % 3, "value": b"%d" % n} for n in range(300)]
                await asyncio.to_thread(kafka.produce, topic, records)
            await until(lambda: bridge.progress.records >= 1_800)
            bridge.stop()

    assert offsets(await stored_records(nats_server.url, route)) == {
        partition: [*range(600)] for partition in range(3)
    }


@pytest.mark.kafka
@pytest.mark.slow
async def test_it_reads_from_the_broker_of_its_rack(
    real_nats_server: Server, topic: str, tmp_path: Path
) -> None:
    """From the leader and, as the leader tells it to, from the follower."""
    need("kafka")
    route = a_route(topic)
    cluster = await asyncio.to_thread(KafkaCluster, tmp_path, 2)
    try:
        await asyncio.to_thread(cluster.open)
        await asyncio.to_thread(cluster.create_topic, topic, 1)
        await asyncio.to_thread(cluster.await_whole, topic)
        leader = await asyncio.to_thread(cluster.leader, topic, 0)
        kafka = Kafka(kind=REAL, bootstrap=cluster.bootstrap)
        read_from: list[int] = []

        def note(statistics: str) -> None:
            partitions = json.loads(statistics)["topics"].get(topic, {}).get("partitions", {})
            read_from.append(partitions.get("0", {}).get("broker", -1))

        for number in cluster.nodes:
            options: Any = {
                "client.rack": f"rack{number}",
                "statistics.interval.ms": "100",
                "stats_cb": note,
            }
            bridge = Bridge(
                kafka=cluster.bootstrap,
                nats=real_nats_server.url,
                route=route,
                kafka_options=options,
            )
            async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
                tasks.create_task(bridge.run(), name="bridge")
                await until(lambda n=number: read_from[-1:] == [n])  # type: ignore[misc]
                records = [{"partition": 0, "value": b"%d" % n} for n in range(300)]
                await asyncio.to_thread(kafka.produce, topic, records)
                await until(lambda one=bridge: one.progress.records == 300)  # type: ignore[misc]
                # A follower that is late sends it to the leader, and is preferred again later.
                await until(lambda n=number: read_from[-1:] == [n])  # type: ignore[misc]
                bridge.stop()
        led_since = await asyncio.to_thread(cluster.leader, topic, 0)
    finally:
        cluster.close()

    assert led_since is leader
    assert offsets(await stored_records(real_nats_server.url, route)) == {0: [*range(600)]}


@asynccontextmanager
async def stopped_leader(brokers: KafkaCluster, topic: str) -> AsyncIterator[None]:
    """Kill who leads partition 0, and start it again behind the block; another one leads there."""
    leader = await asyncio.to_thread(brokers.leader, topic, 0)
    async with stopped(brokers, leader, topic):
        while await asyncio.to_thread(brokers.leader, topic, 0) is leader:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        yield


@asynccontextmanager
async def stopped(brokers: KafkaCluster, node: Node, topic: str) -> AsyncIterator[None]:
    """Kill a node, and start it again behind the block, until it has all of the topic."""
    node.kill()
    try:
        yield
    finally:
        node.start()
        await asyncio.to_thread(brokers.await_whole, topic)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
async def test_a_leader_that_is_killed_while_it_reads_costs_nothing(
    real_nats_server: Server, brokers: KafkaCluster, topic: str, mode: str
) -> None:
    await asyncio.to_thread(brokers.create_topic, topic, PARTITIONS)
    kafka = Kafka(kind=REAL, bootstrap=brokers.bootstrap)
    route, url = a_route(topic, **MODES[mode]), real_nats_server.url
    bridge = Bridge(kafka=brokers.bootstrap, nats=url, route=route)

    def records(count: int) -> list[dict[str, Any]]:
        return [{"partition": n % PARTITIONS, "value": b"%d" % n} for n in range(count)]

    async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await asyncio.to_thread(kafka.produce, topic, records(3_000))
        await until(lambda: bridge.progress.records > 0)
        async with stopped_leader(brokers, topic):
            await asyncio.to_thread(kafka.produce, topic, records(3_000))
        await asyncio.to_thread(kafka.produce, topic, records(3_000))
        await barrier(kafka=brokers.bootstrap, nats=url, route=route, timeout_s=120)
        assert not running.done()
        bridge.stop()

    stored = await stored_records(url, route, dense_partitions=PARTITIONS)
    found = {p: [r.offset for r in of_p] for p, of_p in stored.items()}
    # A producer that repeats a batch may store it twice: Kafka's offsets are what counts.
    expected: dict[int, list[int]] = {}
    for record in await asyncio.to_thread(all_records, kafka, topic):
        expected.setdefault(record.kafka_partition, []).append(record.offset)
    assert found == expected
    proof = await verify(kafka=brokers.bootstrap, nats=url, route=route)
    assert proof.equal, proof.difference


@pytest.mark.kafka
@pytest.mark.slow
async def test_the_way_back_and_a_proof_go_on_where_a_leader_is_killed(
    real_nats_server: Server, brokers: KafkaCluster, topic: str
) -> None:
    await asyncio.to_thread(brokers.create_topic, topic, PARTITIONS)
    kafka = Kafka(kind=REAL, bootstrap=brokers.bootstrap)
    route, url = a_route(topic, shared=True), real_nats_server.url
    await move_all(brokers.bootstrap, url, route)
    home = BackBridge(kafka=brokers.bootstrap, nats=url, route=route)

    async with asyncio.timeout(300), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(home.run(), name="home")
        await publish(real_nats_server, range(500))
        await until(lambda: home.progress.records > 0)
        async with stopped_leader(brokers, topic):
            await publish(real_nats_server, range(500, 1_000))
        coordinator = await asyncio.to_thread(brokers.coordinator, home.name)
        # Its client hangs where this one coordinated the group, and is replaced.
        async with stopped(brokers, coordinator, topic):
            await until(lambda: home.progress.records >= 1_000, timeout_s=120)
            await publish(real_nats_server, range(1_000, 1_500))
            await until(lambda: home.progress.records >= 1_500, timeout_s=120)
        assert not running.done()
        home.stop()

    returned = natives(await asyncio.to_thread(all_records, kafka, topic), route)
    assert sorted(int((it.value or b"").split()[1]) for it in returned) == [*range(1_500)]
    async with stopped_leader(brokers, topic):
        proof = await verify(kafka=brokers.bootstrap, nats=url, route=route)
    assert proof.equal, proof.difference
