"""Replicated streams: no chain, which would stop them; atomic batches that expect a sequence."""

import asyncio
from typing import Any, ClassVar

import pytest
from nats.aio.client import Client

from millstream_bridge import Bridge, barrier, verify
from millstream_bridge.moving.chain import ChainPublisher
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until, until_moved
from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import Kafka

pytestmark = [pytest.mark.slow, pytest.mark.real_server]

PARTITIONS = 3


@pytest.mark.parametrize("mode", [{}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}])
async def test_rivals_strays_and_a_lost_leader_neither_stop_the_stream_nor_cost_a_record(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str, mode: dict[str, str]
) -> None:
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, replicas=3, **mode)
    stream = "FLIGHTS-1" if mode else "FLIGHTS"
    url = ",".join(cluster.urls)
    bridges = [
        Bridge(kafka=mock.bootstrap, nats=url, route=route, stand_back_s=0.1) for _ in range(2)
    ]

    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for bridge in bridges:
            tasks.create_task(bridge.run(), name="bridge")
            # A cluster that is just making the stream answers nobody who asks for it.
            await until(lambda one=bridge: one.progress.sessions > 0)  # type: ignore[misc]
        for turn in range(9):
            records = [{"partition": n % PARTITIONS, "value": b"%d" % n} for n in range(300)]
            await asyncio.to_thread(mock.produce, topic, records)
            await until(lambda: sum(one.progress.records for one in bridges) > 0)
            if turn % 3 == 1 and not mode:
                await client.publish("flights.1.stray", b"stray")
            if turn == 4:
                leader = await cluster.leader_of(client, stream)
                leader.kill()
                await leader.restart()
        await until_moved(bridges, PARTITIONS, 900, timeout_s=90)
        for bridge in bridges:
            bridge.stop()

    for name in [f"FLIGHTS-{p}" for p in range(PARTITIONS)] if mode else ["FLIGHTS"]:
        await cluster.until_current(client, name)
    stored = await stored_records(url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {partition: [*range(900)] for partition in range(PARTITIONS)}
    assert (await verify(kafka=mock.bootstrap, nats=url, route=route)).equal


class Strayed(ChainPublisher):
    """Has a stray message stored before its second batch, and notes how many each was of."""

    sizes: ClassVar[list[int]] = []
    client: ClassVar[Client]

    async def _commit(self, *args: Any) -> None:
        self.sizes.append(len(args[-1]))
        if len(self.sizes) == 2:
            await self.client.jetstream().publish("flights.1.stray", b"stray")
        await super()._commit(*args)


async def test_a_batch_refused_because_of_a_stray_message_is_followed_by_whole_ones(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str
) -> None:
    """Each has an answer of its own: nothing is to be found out record by record."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"%d" % n} for n in range(2_500)])
    Strayed.sizes, Strayed.client = [], client
    url = ",".join(cluster.urls)

    report = await move_all(
        mock.bootstrap, url, a_route(topic, replicas=3), stand_back_s=0.05, make_publisher=Strayed
    )

    assert (report.records, report.refusals) == (2_500, 1)
    assert min(Strayed.sizes[:-1]) > 1


async def test_the_barrier_waits_for_a_new_leader(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str
) -> None:
    """Which takes longer than a request is waited for."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"v"}])
    route, url = a_route(topic, replicas=3), ",".join(cluster.urls)
    await move_all(mock.bootstrap, url, route)
    leader = await cluster.leader_of(client, "FLIGHTS")
    leader.kill()
    try:
        goal = await barrier(kafka=mock.bootstrap, nats=url, route=route, timeout_s=60)
    finally:
        await leader.restart()

    assert goal == {0: 1}


async def test_a_replicated_stream_without_batches_is_refused(
    cluster: NatsCluster, client: Client, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    await client.jetstream().add_stream(name="FLIGHTS", subjects=["flights.>"], num_replicas=3)

    with pytest.raises(Exception, match="lacks allow_atomic"):
        await move_all(mock.bootstrap, cluster.urls[0], a_route(topic))
