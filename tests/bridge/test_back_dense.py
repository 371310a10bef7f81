"""A dense route's way back, cut-over and rollback: one stream for each partition."""

import asyncio

import nats
import pytest

from millstream_bridge import ConfigurationError
from millstream_bridge.back import growth
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.jetstream.api import call
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.model import Route
from millstream_bridge.records.origin import Return, returned
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import PARTITIONS
from tests.bridge.test_cutover import commit, cut, handled_by
from tests.bridge.test_rollback import roll
from tests.bridge.test_topics_that_change import grow
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


async def fill(kafka: Kafka, server: Server, topic: str) -> Route:
    """Four records in each of three partitions, all moved: value n at offset n // 3."""
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(
        topic,
        [{"partition": n % 3, "key": b"K%d" % n, "value": b"%d" % n} for n in range(12)],
    )
    route = a_route(topic, mode="dense", stream="FLIGHTS-{partition}")
    await move_all(kafka.bootstrap, server.url, route)
    return route


async def publish(server: Server, partitions: range = range(PARTITIONS)) -> None:
    """One native message to each partition; the forward bridge has ended."""
    client = await nats.connect(server.url)
    try:
        for number in partitions:
            await client.jetstream().publish(f"flights.{number}.N", b"native %d" % number)
    finally:
        await client.close()


async def test_what_one_stream_brings_does_not_wait_for_the_others(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_bridge.back.runner._WAIT_S", 3_600)
    route = await fill(mock, nats_server, topic)
    bridge = BackBridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="back")
        await until(lambda: bridge.progress.sessions > 0)
        for n in range(1, 4):
            await publish(nats_server, range(1, 2))
            await until(lambda n=n: bridge.progress.records == n)  # type: ignore[misc]
        bridge.stop()


@pytest.mark.kafka
async def test_a_stream_that_is_made_later_is_read_too(
    nats_server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a partition that was added: at first the topic has it, then the route."""
    monkeypatch.setattr(growth, "LOOK_S", 0.1)
    route = await fill(a_real_kafka, nats_server, topic)
    bridge = BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="back")
        await until(lambda: bridge.progress.sessions > 0)
        await grow(a_real_kafka, topic, PARTITIONS + 1)
        await move_all(a_real_kafka.bootstrap, nats_server.url, route)
        await publish(nats_server, range(PARTITIONS + 1))
        await until(lambda: bridge.progress.records == PARTITIONS + 1)
        bridge.stop()


@pytest.mark.kafka
async def test_a_stream_that_is_gone_is_not_taken_for_one_that_is_still_to_come(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    bridge = BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)
    await bridge.run(stop_at_end=True)
    connection = await Connection.open(nats_server.url, name="test")
    await call(connection, "STREAM.DELETE.FLIGHTS-1")
    await connection.close()

    with pytest.raises(ConfigurationError, match="stream FLIGHTS-1 is not there any more"):
        await BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route).run()


@pytest.mark.kafka
async def test_each_stream_has_a_position_of_its_own(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    route = await fill(a_real_kafka, nats_server, topic)
    reports = []
    for _ in range(2):
        await publish(nats_server)
        bridge = BackBridge(kafka=a_real_kafka.bootstrap, nats=nats_server.url, route=route)
        reports.append(await bridge.run(stop_at_end=True))

    marks = [
        mark
        for record in all_records(a_real_kafka, topic)
        if (mark := returned(record.headers, route.name)) is not None
    ]
    assert marks == [Return(f"FLIGHTS-{p}", seq) for p in range(PARTITIONS) for seq in (5, 6)]
    assert [report.records for report in reports] == [PARTITIONS, PARTITIONS]
    assert reports[1].positions == {f"FLIGHTS-{p}": 7 for p in range(PARTITIONS)}


async def test_a_group_moves_there_and_home_again(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    commit(kafka, topic, topic, {0: 1, 1: 3, 2: 4})

    there = await cut(kafka, nats_server, route, topic, apply=True)
    seen = await handled_by(nats_server, route, topic, 4)
    home = await roll(kafka, nats_server, route, topic, apply=True)

    assert there.problems == []
    assert {it.partition: it.next_seq for it in there.partitions} == {0: 2, 1: 4, 2: 5}
    assert sorted(data for _, data in seen) == sorted([b"3", b"6", b"9", b"10"])
    assert home.problems == []
    assert {it.partition: it.after for it in home.partitions} == {0: 4, 1: 4, 2: 4}
