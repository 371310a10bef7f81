"""Both directions of a route at once: nothing goes in circles, and nothing is missing anywhere."""

import asyncio
from functools import partial
from typing import Any

import pytest

from millstream_bridge import Bridge, barrier
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.records.origin import returned
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until
from tests.bridge.test_back import PARTITIONS, back, fill, natives, publish
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


async def test_each_record_is_once_on_either_side_while_both_run(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """Producers on both sides, both bridges running all the while."""
    route = await fill(kafka, nats_server, topic)
    there = Bridge(kafka=kafka.bootstrap, nats=nats_server.url, route=route)
    home = BackBridge(kafka=kafka.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        tasks.create_task(there.run(), name="there")
        tasks.create_task(home.run(), name="home")
        await until(lambda: there.progress.sessions > 0 and home.progress.sessions > 0)
        for turn in range(3):
            await publish(nats_server, range(turn * 10, turn * 10 + 10))
            more = [
                {"partition": n % PARTITIONS, "key": b"M%d" % n, "value": b"kafka %d" % n}
                for n in range(turn * 10, turn * 10 + 10)
            ]
            await asyncio.to_thread(kafka.produce, topic, more)
        await until(lambda: home.progress.records == 30)
        # The watermarks include what came back, which the forward bridge will never store.
        await barrier(kafka=kafka.bootstrap, nats=nats_server.url, route=route, timeout_s=60)
        there.stop()
        home.stop()

    in_kafka = all_records(kafka, topic)
    moved = [r for of_p in (await stored_records(nats_server.url, route)).values() for r in of_p]
    born_there = [r for r in in_kafka if returned(r.headers, route.name) is None]
    assert len(in_kafka) == 12 + 30 + 30
    assert len(natives(in_kafka, route)) == 30
    assert sorted(moved) == sorted(born_there)


async def test_the_position_moves_past_what_came_back(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    """So that a restart does not read months of it again."""
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(20))
    await back(kafka, nats_server, route)

    report = await move_all(kafka.bootstrap, nats_server.url, route)

    newest: dict[int, int] = {}
    for record in all_records(kafka, topic):
        newest[record.kafka_partition] = record.offset + 1
    assert report.records == 0
    assert dict(report.positions) == newest


async def test_the_barrier_does_not_wait_for_what_came_back(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """No bridge runs: nobody moves the position past it."""
    route = await fill(mock, nats_server, topic)
    await publish(nats_server, range(20))
    await back(mock, nats_server, route)

    goal = await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=30)

    assert sum(goal.values()) > 12
    mock.produce(topic, [{"partition": 0, "value": b"new"}])
    with pytest.raises(TimeoutError, match="partition 0"):
        await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=route, timeout_s=2)


async def test_another_route_moves_what_came_back_like_any_record(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    route = await fill(kafka, nats_server, topic)
    await publish(nats_server, range(5))
    await back(kafka, nats_server, route)
    other = a_route(topic, stream="OTHER", subject="other.{partition}.{key}", name="other")

    await move_all(kafka.bootstrap, nats_server.url, other)

    stored = await stored_records(nats_server.url, other)
    assert sum(map(len, offsets(stored).values())) == 12 + 5


async def test_a_route_that_is_not_shared_leaves_out_what_came_back(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    own = a_route(topic)
    headers = [("Millstream-Origin", own.name.encode()), ("Millstream-Source", b"FLIGHTS 7")]
    foreign = [("Millstream-Origin", b"another"), ("Millstream-Source", b"FLIGHTS 7")]
    mock.produce(
        topic,
        [
            {"partition": 0, "value": b"a"},
            {"partition": 0, "value": b"came back", "headers": headers},
            {"partition": 0, "value": b"another's", "headers": foreign},
            {"partition": 0, "value": b"by hand", "headers": headers[:1]},
        ],
    )

    await move_all(mock.bootstrap, nats_server.url, own)

    stored = await stored_records(nats_server.url, own)
    assert [record.value for record in stored[0]] == [b"a", b"another's", b"by hand"]


@pytest.mark.parametrize(
    "more",
    [{}, {"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}],
    ids=["chain", "shared", "dense"],
)
async def test_what_came_back_is_no_lag(
    nats_server: Server, mock: Kafka, topic: str, more: dict[str, Any]
) -> None:
    """Behind the newest record there is nothing to be stored, also after a new start."""
    mock.create_topic(topic, 1)
    route = a_route(topic, **more)
    headers = [("Millstream-Origin", route.name.encode()), ("Millstream-Source", b"FLIGHTS 7")]
    back = {"partition": 0, "value": b"came back", "headers": headers}
    mock.produce(topic, [{"partition": 0, "value": b"a"}, back, back])

    for _ in range(2):
        bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)
        running = asyncio.create_task(bridge.run())
        await until(partial(has_reached, bridge, 3), timeout_s=20)
        bridge.stop()
        await running


def has_reached(bridge: Bridge, offset: int) -> bool:
    return bridge.progress.reached(0) == offset
