"""A dense route's way back, cut-over and rollback: one stream for each partition."""

import nats
import pytest

from millstream_bridge.back.runner import BackBridge
from millstream_bridge.model import Route
from millstream_bridge.records.origin import Return, returned
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_back import PARTITIONS
from tests.bridge.test_cutover import commit, cut, handled_by
from tests.bridge.test_rollback import roll
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


async def publish(server: Server) -> None:
    """One native message to each partition; the forward bridge has ended."""
    client = await nats.connect(server.url)
    try:
        for number in range(PARTITIONS):
            await client.jetstream().publish(f"flights.{number}.N", b"native %d" % number)
    finally:
        await client.close()


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
