"""A topic moved end to end: nothing lost, nothing twice, everything as it was."""

import asyncio

import nats as nats_py
import pytest

from millstream_bridge import Bridge, barrier, verify
from tests.bridge.moves import a_route, move_all, offsets, some_records, stored_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 3


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_every_record_arrives_as_it_was(
    nats_server: Server, kafka: Kafka, topic: str, shared: bool
) -> None:
    kafka.create_topic(topic, PARTITIONS)
    produced = some_records(300, PARTITIONS)
    kafka.produce(topic, produced)
    route = a_route(topic, shared=shared)

    report = await move_all(kafka.bootstrap, nats_server.url, route)

    assert report.records == 300
    stored = await stored_records(nats_server.url, route)
    for partition in range(PARTITIONS):
        wanted = produced[partition::PARTITIONS]
        assert [(r.key, r.value, r.timestamp_ms, list(r.headers)) for r in stored[partition]] == [
            (w["key"], w["value"], w["timestamp"], w["headers"]) for w in wanted
        ]
        assert [r.offset for r in stored[partition]] == list(range(100))


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_a_second_run_goes_on_where_the_first_ended(
    nats_server: Server, kafka: Kafka, topic: str, shared: bool
) -> None:
    kafka.create_topic(topic, PARTITIONS)
    route = a_route(topic, shared=shared)
    kafka.produce(topic, some_records(90, PARTITIONS))
    await move_all(kafka.bootstrap, nats_server.url, route)
    kafka.produce(topic, some_records(60, PARTITIONS))

    second = await move_all(kafka.bootstrap, nats_server.url, route)
    third = await move_all(kafka.bootstrap, nats_server.url, route)

    assert (second.records, third.records) == (60, 0)
    assert offsets(await stored_records(nats_server.url, route)) == {
        partition: list(range(50)) for partition in range(PARTITIONS)
    }


async def test_verify_and_barrier_agree_that_all_is_there(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(topic, some_records(2_500, PARTITIONS))
    route = a_route(topic)
    await move_all(kafka.bootstrap, nats_server.url, route)

    goal = await barrier(kafka=kafka.bootstrap, nats=nats_server.url, route=route, timeout_s=10)
    proof = await verify(kafka=kafka.bootstrap, nats=nats_server.url, route=route)

    assert goal == {0: 834, 1: 833, 2: 833}
    assert proof.equal
    assert proof.records == 2_500
    assert proof.foreign == 0
    assert all(one.kafka == one.nats for one in proof.partitions.values())


async def test_records_that_come_while_it_runs_are_moved_until_it_is_stopped(
    nats_server: Server, kafka: Kafka, topic: str
) -> None:
    kafka.create_topic(topic, PARTITIONS)
    route = a_route(topic)
    ready = asyncio.Event()
    bridge = Bridge(
        kafka=kafka.bootstrap,
        nats=nats_server.url,
        route=route,
        on_ready=lambda _: ready.set(),
    )

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await ready.wait()
        for _ in range(3):
            await asyncio.to_thread(kafka.produce, topic, some_records(30, PARTITIONS))
            await barrier(kafka=kafka.bootstrap, nats=nats_server.url, route=route, timeout_s=20)
        bridge.stop()

    report = running.result()
    assert (report.ended, report.records, report.sessions) == ("stopped", 90, 1)


async def test_a_nats_client_sees_plain_headers_and_the_keys_own_token(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(
        topic,
        [{"partition": 0, "key": b"N14228", "value": b"leg", "headers": [("carrier", b"UA")]}],
    )
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    client = await nats_py.connect(nats_server.url)
    try:
        message = await client.jetstream().get_last_msg("FLIGHTS", "flights.0.N14228")
    finally:
        await client.close()

    assert message.data == b"leg"
    assert message.headers is not None
    assert message.headers["carrier"] == "UA"
    assert message.headers["Millstream-Source"].startswith(f"{topic} 0 0 ")
    assert message.headers["Millstream-Origin"] == topic


async def test_a_stream_it_makes_keeps_few_message_ids(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))

    client = await nats_py.connect(nats_server.url)
    try:
        config = (await client.jetstream().stream_info("FLIGHTS")).config
    finally:
        await client.close()

    assert config.subjects == ["flights.>"]
    assert config.duplicate_window == 0.1
    assert config.allow_direct
