"""A server that has no room left: said in one line, waited out, nothing lost and nothing twice."""

import asyncio
import logging
import re
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from millstream_bridge import Bridge, Record
from millstream_bridge.jetstream.api import call
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.stream import Stream
from millstream_bridge.model import TimestampType
from millstream_bridge.moving.checkpoint import CheckpointPublisher
from millstream_bridge.records.frames import encode
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until
from tests.coordinator.test_connections import configured
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

RECORDS = 3_000


@pytest.mark.real_server
@pytest.mark.parametrize(
    "mode", [{}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}, {"shared": True}], ids=str
)
async def test_a_full_server_is_waited_for(
    tmp_path: Path,
    mock: Kafka,
    topic: str,
    mode: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 1_000}] * RECORDS)
    route = a_route(topic, **mode)
    caplog.set_level(logging.WARNING, "millstream_bridge")

    async with configured(tmp_path, "", jetstream="max_file: 2MB") as server:
        # Of a batch for which there is no room the server at times says nothing.
        shared = partial(CheckpointPublisher, stall_s=1.0) if route.shared else None
        bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route, make_publisher=shared)
        running = asyncio.create_task(bridge.run(stop_at_end=True), name="bridge")
        await until(lambda: "takes nothing now" in caplog.text or running.done())
        before, refusals = bridge.progress.records, bridge.progress.refusals
        room_for = sum(
            map(len, (await stored_records(server.url, route, dense_partitions=1)).values())
        )
        config = tmp_path / "server.conf"
        config.write_text(config.read_text().replace("2MB", "20MB"))
        await server.restart()
        async with asyncio.timeout(60):
            await running

        stored = await stored_records(server.url, route, dense_partitions=1)
    assert 0 < before < RECORDS
    if not route.shared:  # whose records count once their checkpoint is stored
        assert (before, refusals) == (room_for, 0)
    assert re.search("takes nothing now: .*insufficient resources", caplog.text)
    assert "somebody else" not in caplog.text
    assert offsets(stored) == {0: [*range(RECORDS)]}


@pytest.mark.real_server
@pytest.mark.parametrize("choice", [{"large": "object-store"}, {"on_poison": "park"}], ids=str)
async def test_a_bucket_without_room_is_waited_for_too(
    tmp_path: Path,
    mock: Kafka,
    topic: str,
    choice: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 100_000}])
    route = a_route(topic, **choice)
    caplog.set_level(logging.WARNING, "millstream_bridge")

    limits = "max_payload: 60000\n"
    async with configured(tmp_path, limits, jetstream="max_file: 300KB") as server:
        connection = await Connection.open(server.url, name="test")
        ballast = {"name": "BALLAST", "subjects": ["ballast"], "storage": "file"}
        await call(connection, "STREAM.CREATE.BALLAST", ballast)
        for _ in range(5):
            await connection.request("ballast", b"y" * 50_000)
        bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route)
        async with asyncio.timeout(60):
            running = asyncio.create_task(bridge.run(stop_at_end=True), name="bridge")
            await until(lambda: "takes nothing now" in caplog.text or running.done())
            await call(connection, "STREAM.DELETE.BALLAST")
            report = await running
        await connection.close()

    assert re.search("takes nothing now: .*insufficient resources", caplog.text)
    assert report.records == 1


@pytest.mark.real_server
async def test_other_partitions_go_on_while_one_waits_for_its_bucket(
    tmp_path: Path, mock: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was stored of the large record does not take their room."""
    mock.create_topic(topic, 2)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 900_000}])
    route = a_route(topic, shared=True, large="object-store")
    caplog.set_level(logging.WARNING, "millstream_bridge")
    small = {"partition": 1, "value": b"small"}

    async with configured(tmp_path, "max_payload: 60000\n", jetstream="max_file: 1MB") as server:
        connection = await Connection.open(server.url, name="test")
        ballast = {"name": "BALLAST", "subjects": ["ballast"], "storage": "file"}
        await call(connection, "STREAM.CREATE.BALLAST", ballast)
        for _ in range(12):
            await connection.request("ballast", b"y" * 50_000)
        bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route)
        async with asyncio.timeout(60):
            running = asyncio.create_task(bridge.run(), name="bridge")

            def has_reached(partition: int, position: int) -> bool:
                return bridge.progress.positions.get(partition) == position or running.done()

            for n in range(1, 6):
                mock.produce(topic, [small])
                await until(partial(has_reached, 1, n))
            waiting = bridge.progress.positions.get(0)
            await call(connection, "STREAM.DELETE.BALLAST")
            await until(partial(has_reached, 0, 1))
            bridge.stop()
            report = await running
        await connection.close()

    assert waiting is None
    assert report.positions == {0: 1, 1: 5}
    assert caplog.text.count("partition 0 waits at offset 0: bucket") == 1


@pytest.mark.real_server
async def test_a_record_whose_mark_finds_no_room_is_skipped_once(
    tmp_path: Path, mock: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each session until there is room makes the mark again."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 100_000}] * 2)
    route = a_route(topic, on_poison="skip")
    caplog.set_level(logging.WARNING, "millstream_bridge")

    limits = "max_payload: 60000\n"
    async with configured(tmp_path, limits, jetstream="max_file: 300KB") as server:
        connection = await Connection.open(server.url, name="test")
        ballast = {"name": "BALLAST", "subjects": ["ballast"], "storage": "file"}
        await call(connection, "STREAM.CREATE.BALLAST", ballast)
        for size in (50_000, 0):
            while b"error" not in (await connection.request("ballast", b"y" * size)).payload:
                pass
        bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route)
        async with asyncio.timeout(60):
            running = asyncio.create_task(bridge.run(stop_at_end=True), name="bridge")
            await until(lambda: bridge.progress.sessions > 3 or running.done())
            before = bridge.progress.skipped
            await call(connection, "STREAM.DELETE.BALLAST")
            report = await running
        await connection.close()

    assert (before, report.skipped, report.records) == (0, 2, 2)
    assert caplog.text.count("skipped: ") == 2
    assert caplog.text.count("takes nothing now") == 1


@pytest.mark.real_server
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
@pytest.mark.parametrize("mode", [{}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}], ids=str)
async def test_a_server_whose_disk_is_full_is_not_taken_for_a_rival(
    real_nats_server: Server,
    mock: Kafka,
    topic: str,
    mode: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says nothing of what it cannot write; a limit on its files stands for the disk."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 1_000}] * RECORDS)
    route = a_route(topic, **mode)
    caplog.set_level(logging.WARNING, "millstream_bridge")
    server = real_nats_server
    no_limit = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (2_000_000, no_limit[1]))

    bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route)
    running = asyncio.create_task(bridge.run(stop_at_end=True), name="bridge")
    await until(lambda: "takes nothing now" in caplog.text or running.done())
    await server.restart()
    async with asyncio.timeout(60):
        report = await running

    stored = await stored_records(server.url, route, dense_partitions=1)
    assert "the server stores nothing and does not say why" in caplog.text
    assert "somebody else" not in caplog.text
    assert (report.refusals, report.stood_back) == (0, 0)
    assert offsets(stored) == {0: [*range(RECORDS)]}


@pytest.mark.real_server
@pytest.mark.parametrize("is_killed", [False, True])
async def test_what_a_server_without_room_has_stored_of_a_batch_is_not_stored_again(
    tmp_path: Path,
    mock: Kafka,
    topic: str,
    caplog: pytest.LogCaptureFixture,
    *,
    is_killed: bool,
) -> None:
    """All of a batch or nothing does not hold for it; somebody else makes room."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x" * 1_000}] * RECORDS)
    route = a_route(topic, shared=True)
    caplog.set_level(logging.WARNING, "millstream_bridge")

    async with configured(tmp_path, "", jetstream="max_file: 6MB") as server:
        connection = await Connection.open(server.url, name="test")
        ballast = {"name": "BALLAST", "subjects": ["ballast"], "storage": "file"}
        await call(connection, "STREAM.CREATE.BALLAST", ballast)
        for _ in range(40):
            await connection.request("ballast", b"y" * 100_000)
        make = partial(CheckpointPublisher, stall_s=1.0)
        bridge = Bridge(kafka=mock.bootstrap, nats=server.url, route=route, make_publisher=make)
        async with asyncio.timeout(60):
            running = asyncio.create_task(bridge.run(stop_at_end=True), name="bridge")
            await until(lambda: "takes nothing now" in caplog.text or running.done())
            if is_killed:
                running.cancel()
                await asyncio.wait({running})
            torn = len((await stored_records(server.url, route))[0])
            await call(connection, "STREAM.DELETE.BALLAST")
            await connection.request("flights.0.native", b"from another")
            if is_killed:
                await move_all(mock.bootstrap, server.url, route)
            else:
                await running
        stored = await stored_records(server.url, route)
        reached = await Stream(connection, Mapping(route)).reached(0)
        await connection.close()

    assert torn > bridge.progress.positions[0] or not is_killed, "no batch was torn"
    assert offsets(stored) == {0: [*range(RECORDS)]}
    assert reached == RECORDS


@pytest.mark.parametrize("before", [0, 5])
async def test_where_all_that_is_left_was_in_a_torn_batch_its_checkpoint_is_made_up_for(
    nats_server: Server, mock: Kafka, topic: str, before: int
) -> None:
    """Also where it was the first, and only a claim is before it."""
    mock.create_topic(topic, 1)
    records = [
        Record(0, n, 1_700_000_000_000 + n, TimestampType.CREATE, b"k", b"%d" % n) for n in range(8)
    ]
    produced = [
        {"partition": 0, "key": it.key, "value": it.value, "timestamp": it.timestamp_ms}
        for it in records
    ]
    mock.produce(topic, produced[:before])
    route = a_route(topic, shared=True)
    await move_all(mock.bootstrap, nats_server.url, route)
    mock.produce(topic, produced[before:])
    mapping = Mapping(route)
    connection = await Connection.open(nats_server.url, name="test")
    try:
        stream = Stream(connection, mapping)
        await connection.request(stream.batch_subject(0))
        for record in records[before:]:
            block = f"NATS/1.0\r\n{mapping.header_lines(record)}\r\n"
            subject, value = mapping.subject(record), record.value or b""
            await connection.publish_and_wait(partial(encode, subject, block=block, payload=value))
        report = await move_all(mock.bootstrap, nats_server.url, route)
        _, checkpoint = await stream.checkpoint(0)
    finally:
        await connection.close()

    assert checkpoint is not None
    assert (report.records, checkpoint.next_offset) == (0, 8)
