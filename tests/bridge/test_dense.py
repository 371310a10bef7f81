"""A dense route: one stream for each Kafka partition, a message's sequence its offset + 1."""

import asyncio
import json
from typing import Any

import nats as nats_py
import pytest

from millstream_bridge import Bridge, ConfigurationError, verify
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.stream import GAPS, POSITION, Stream
from millstream_bridge.model import Record, TimestampType, Watermarks
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.moving.dense import DensePublisher
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import (
    a_route,
    move_all,
    offsets,
    some_records,
    stored_messages,
    stored_records,
    until,
    until_moved,
)
from tests.bridge.topics import await_readable, transactional
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 4
DENSE = {"mode": "dense", "stream": "FLIGHTS-{partition}"}


def fill(kafka: Kafka, topic: str, count: int) -> None:
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(topic, some_records(count, PARTITIONS))


async def api(url: str, verb: str, **body: Any) -> dict[str, Any]:
    connection = await Connection.open(url, name="operator")
    try:
        answer = await connection.request(f"$JS.API.{verb}", json.dumps(body).encode())
        found: dict[str, Any] = json.loads(answer.payload)
        return found
    finally:
        await connection.close()


STRAYS = 3


async def publish_strays(url: str, partition: int = 2) -> None:
    client = await nats_py.connect(url)
    for _ in range(STRAYS):
        await client.jetstream().publish(f"flights.{partition}.stray", b"stray")
    await client.close()


async def purge(url: str, partition: int) -> None:
    assert "error" not in await api(url, f"STREAM.PURGE.FLIGHTS-{partition}")


async def test_a_sequence_is_the_offset_plus_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 4_000)
    route = a_route(topic, **DENSE)

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_messages(nats_server.url, route, dense_partitions=PARTITIONS)
    assert report.positions == dict.fromkeys(range(PARTITIONS), 1_000)
    assert len(stored) == 4_000
    assert all(seq == record.offset + 1 for seq, record in stored)


async def test_a_partition_whose_log_begins_later_begins_at_its_sequence(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """The mock keeps 100,000 records of a partition or 5 MiB."""
    mock.create_topic(topic, 1)
    await asyncio.to_thread(
        mock.produce, topic, [{"partition": 0, "value": b"x" * 60_000} for _ in range(120)]
    )
    route = a_route(topic, **DENSE)

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_messages(nats_server.url, route, dense_partitions=1)
    assert 0 < report.records < 120
    assert stored[0][1].offset == 120 - report.records
    assert all(seq == record.offset + 1 for seq, record in stored)


async def test_a_run_goes_on_where_the_one_before_ended(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 400)
    route = a_route(topic, **DENSE)
    await move_all(mock.bootstrap, nats_server.url, route)
    mock.produce(topic, some_records(40, PARTITIONS))

    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert report.records == 40
    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {partition: [*range(110)] for partition in range(PARTITIONS)}


async def test_two_live_bridges_store_each_record_once_and_in_order(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 0)
    route = a_route(topic, **DENSE)
    bridges = [
        Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route, stand_back_s=0.05)
        for _ in range(2)
    ]

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for bridge in bridges:
            tasks.create_task(bridge.run(), name="bridge")
        for _ in range(10):
            await asyncio.to_thread(mock.produce, topic, some_records(40, PARTITIONS))
        await until_moved(bridges, PARTITIONS, 100)
        for bridge in bridges:
            bridge.stop()

    stored = await stored_messages(nats_server.url, route, dense_partitions=PARTITIONS)
    assert [record.offset for _, record in stored] == [*range(100)] * PARTITIONS
    assert all(seq == record.offset + 1 for seq, record in stored)


async def test_a_stray_message_shifts_what_follows_and_the_stream_says_so(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE)
    await move_all(mock.bootstrap, nats_server.url, route)
    client = await nats_py.connect(nats_server.url)
    await client.jetstream().publish("flights.2.stray", b"stray")
    await client.close()
    mock.produce(topic, some_records(40, PARTITIONS))

    await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {partition: [*range(20)] for partition in range(PARTITIONS)}
    metadata = [
        (await api(nats_server.url, f"STREAM.INFO.FLIGHTS-{p}"))["config"].get("metadata") or {}
        for p in range(PARTITIONS)
    ]
    assert [GAPS in one for one in metadata] == [False, False, True, False]


@pytest.mark.parametrize("has_gaps", [False, True])
async def test_a_stream_whose_limits_removed_everything_still_tells_the_position(
    nats_server: Server, mock: Kafka, topic: str, has_gaps: bool
) -> None:
    """Whether its sequences are offsets + 1 or not: the bridge has written it down."""
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE, max_age_s=3_600)
    await move_all(mock.bootstrap, nats_server.url, route)
    if has_gaps:
        await publish_strays(nats_server.url)
        await move_all(mock.bootstrap, nats_server.url, route)
    for partition in range(PARTITIONS):
        await purge(nats_server.url, partition)  # as max_age would
    mock.produce(topic, some_records(40, PARTITIONS))

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_messages(nats_server.url, route, dense_partitions=PARTITIONS)
    strays = [0, 0, STRAYS if has_gaps else 0, 0]
    assert report.records == 40
    assert [(seq, record.offset) for seq, record in stored] == [
        (offset + 1 + shift, offset) for shift in strays for offset in range(10, 20)
    ]


async def test_what_came_and_went_while_no_bridge_ran_is_not_taken_for_records(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Nothing is stored on a guess; who knows what it was says it, and the bridge goes on."""
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE, max_age_s=3_600)
    await move_all(mock.bootstrap, nats_server.url, route)
    await publish_strays(nats_server.url)
    await purge(nats_server.url, 2)
    mock.produce(topic, some_records(40, PARTITIONS))

    with pytest.raises(ConfigurationError, match="what was stored after seq 10 is gone") as refused:
        await move_all(mock.bootstrap, nats_server.url, route)
    assert 'millstream.position to "13 N"' in str(refused.value)
    config = (await api(nats_server.url, "STREAM.INFO.FLIGHTS-2"))["config"]
    config["metadata"][POSITION] = "13 10"
    assert "error" not in await api(nats_server.url, "STREAM.UPDATE.FLIGHTS-2", **config)
    await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored)[2] == [*range(10, 20)]
    assert offsets(stored)[0] == [*range(20)]


@pytest.mark.parametrize("is_removed", [False, True])
async def test_stray_messages_alone_are_not_counted_as_records(
    nats_server: Server, mock: Kafka, topic: str, is_removed: bool
) -> None:
    """The records that were before them, when they are removed, still are."""
    fill(mock, topic, 40 if is_removed else 0)
    route = a_route(topic, **DENSE, max_age_s=3_600)
    await move_all(mock.bootstrap, nats_server.url, route)
    if is_removed:
        await purge(nats_server.url, 2)
    await publish_strays(nats_server.url)
    mock.produce(topic, some_records(40, PARTITIONS))

    report = await move_all(mock.bootstrap, nats_server.url, route)

    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    first = 10 if is_removed else 0
    assert report.records == 40
    assert offsets(stored)[2] == [*range(first, first + 10)]


async def test_a_killed_bridge_has_written_down_where_its_newest_records_were_at_rest(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Before their time ran out."""
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE, max_age_s=2)
    connections: list[Connection] = []

    def cut_off(connection: Connection, mapping: Mapping) -> DensePublisher:
        connections.append(connection)
        return DensePublisher(connection, mapping)

    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route, make_publisher=cut_off)

    async def are_gone() -> bool:
        states = [
            (await api(nats_server.url, f"STREAM.INFO.FLIGHTS-{p}"))["state"]
            for p in range(PARTITIONS)
        ]
        return not any(it["messages"] for it in states)

    async with asyncio.timeout(60):
        running = asyncio.create_task(bridge.run(), name="bridge")
        await until_moved([bridge], PARTITIONS, 10)
        while not await are_gone():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.1)
        connections[0]._abort()  # so that its end writes nothing
        bridge.stop()
        await running
    mock.produce(topic, some_records(40, PARTITIONS))
    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert report.records == 40
    assert report.positions == dict.fromkeys(range(PARTITIONS), 20)


async def test_a_running_bridge_stops_where_what_another_stored_is_gone(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """It may have been a record of a second bridge."""
    mock.create_topic(topic, 1)
    mock.produce(topic, some_records(10, 1))
    route = a_route(topic, **DENSE, max_age_s=3_600)
    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    async with asyncio.timeout(60):
        running = asyncio.create_task(bridge.run(), name="bridge")
        await until_moved([bridge], 1, 10)
        await publish_strays(nats_server.url, partition=0)
        await purge(nats_server.url, 0)
        mock.produce(topic, some_records(3, 1))

        with pytest.raises(ConfigurationError, match="what was stored after seq 10 is gone"):
            await running


async def test_gaps_and_a_place_that_are_written_at_once_are_both_there(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """A partition at rest gets its next record in this moment, and it is behind a gap."""
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE)
    await move_all(mock.bootstrap, nats_server.url, route)
    connection = await Connection.open(nats_server.url, name="test")
    one, other = (Stream(connection, Mapping(route), 0) for _ in range(2))
    await one.ensure()
    await other.ensure()

    await asyncio.gather(one.mark_gaps(), one.mark_position(11, 11))
    await other.ensure()
    assert (other.has_gaps, other.place) == (True, (11, 11))

    config = dict((await api(nats_server.url, "STREAM.INFO.FLIGHTS-0"))["config"])
    del config["metadata"][GAPS]  # as another bridge does that read it a moment too early
    assert "error" not in await api(nats_server.url, "STREAM.UPDATE.FLIGHTS-0", **config)
    await one.mark_position(12, 12)
    await other.ensure()
    await connection.close()
    assert (other.has_gaps, other.place) == (True, (12, 12))


async def test_a_place_is_not_that_of_an_end_which_another_bridge_has_moved_meanwhile(
    nats_server: Server, mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.create_topic(topic, 1)
    route = a_route(topic, **DENSE, max_age_s=3_600)
    connection = await Connection.open(nats_server.url, name="test")
    at_work, late = (
        ChainPublisher(connection, Mapping(route), kafka_partition=0) for _ in range(2)
    )
    marks = {0: Watermarks(0, 10)}
    records = [Record(0, n, 1, TimestampType.CREATE, b"k", b"v") for n in range(10)]
    await at_work.open(marks, known={})
    await at_work.send(records[:5])
    await at_work.drain()

    async def between(stream: Stream) -> None:
        if not at_work.positions or at_work.positions[0] == 5:
            await at_work.send(records[5:])
            await at_work.drain()

    monkeypatch.setattr(Stream, "refuse_other_topic", between)
    positions = await late.open(marks, known={})
    await late.end()
    stream = Stream(connection, Mapping(route), 0)
    await stream.ensure()
    await connection.close()

    assert positions == {0: 10}
    assert stream.place is None


async def test_a_place_that_the_server_has_lost_is_written_anew(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """As when its disk had the metadata but not yet the messages: what comes there now differs."""
    fill(mock, topic, 40)
    route = a_route(topic, **DENSE)
    await move_all(mock.bootstrap, nats_server.url, route)
    connection = await Connection.open(nats_server.url, name="test")
    stream = Stream(connection, Mapping(route), 0)
    await stream.mark_position(50, 45)

    mock.produce(topic, some_records(40, PARTITIONS))
    await move_all(mock.bootstrap, nats_server.url, route)

    await stream.ensure()
    await connection.close()
    assert stream.place == (20, 20)


async def test_a_newest_record_that_ran_out_is_not_stored_again(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": it} for it in (b"1", None)])
    route = a_route(topic, **DENSE, tombstone_ttl_s=1)
    await move_all(mock.bootstrap, nats_server.url, route)

    async def kept() -> list[int]:
        stored = await stored_records(nats_server.url, route, dense_partitions=1)
        return offsets(stored).get(0, [])

    async with asyncio.timeout(60):
        while await kept() != [0]:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.1)
    again = await move_all(mock.bootstrap, nats_server.url, route)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"3"}])
    more = await move_all(mock.bootstrap, nats_server.url, route)

    assert (again.records, more.records) == (0, 1)
    assert await kept() == [0, 2]
    assert (await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)).equal


async def test_a_stray_message_behind_the_newest_record_does_not_move_the_position(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """Where tombstones run out, the last sequence is asked, too; no bridge has met it yet."""
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"1"}])
    route = a_route(topic, **DENSE, tombstone_ttl_s=3_600)
    await move_all(mock.bootstrap, nats_server.url, route)
    client = await nats_py.connect(nats_server.url)
    await client.jetstream().publish("flights.0.stray", b"stray")
    await client.close()
    connection = await Connection.open(nats_server.url, name="test")
    try:
        stream = Stream.of_partition(connection, Mapping(route), 0)
        await stream.ensure(may_create=False, first_offset=0)
        position = await stream.position(0)
    finally:
        await connection.close()

    assert position == 1


async def test_a_server_killed_and_started_again_loses_nothing(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 10_000)
    route = a_route(topic, **DENSE)
    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records >= 1_000 or running.done(), pause_s=0)
        nats_server.kill()
        mock.produce(topic, some_records(10_000, PARTITIONS))  # a fast first session had it all
        await nats_server.restart()
        await until_moved([bridge], PARTITIONS, 5_000)
        bridge.stop()

    assert running.result().sessions > 1
    stored = await stored_messages(nats_server.url, route, dense_partitions=PARTITIONS)
    assert [record.offset for _, record in stored] == [*range(5_000)] * PARTITIONS
    assert all(seq == record.offset + 1 for seq, record in stored)


@pytest.mark.kafka
async def test_markers_of_transactions_are_gaps_and_nothing_is_lost(
    nats_server: Server, a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 1)
    producer = transactional(a_real_kafka, topic)
    route = a_route(topic, **DENSE)
    for turn in range(6):
        producer.begin_transaction()
        for n in range(3):
            producer.produce(topic, b"%d.%d" % (turn, n), partition=0)
        if turn % 3 == 2:
            producer.flush(20)
            producer.abort_transaction(20)
        else:
            producer.commit_transaction(20)
        await_readable(a_real_kafka, topic)
        await move_all(a_real_kafka.bootstrap, nats_server.url, route)

    stored = await stored_messages(nats_server.url, route, dense_partitions=1)
    assert [seq for seq, _ in stored] == [*range(1, 13)]
    assert [record.offset for _, record in stored] == [0, 1, 2, 4, 5, 6, 12, 13, 14, 16, 17, 18]
    info = await api(nats_server.url, "STREAM.INFO.FLIGHTS-0")
    assert GAPS in info["config"]["metadata"]
