"""Two bridges at once, stray messages, a server that goes away: once and in order all the same."""

import asyncio
import json
from collections.abc import Mapping as AbcMapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import nats as nats_py
import pytest

from millstream_bridge import Bridge, Record, verify
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.model import Positions, TimestampType, Watermarks
from millstream_bridge.moving import checkpoint
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.moving.checkpoint import CheckpointPublisher
from millstream_bridge.moving.progress import State
from millstream_bridge.moving.window import Window
from millstream_bridge.ports import Publisher
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_records, until, until_moved
from tests.bridge.windows import PlainSequenceWindow
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 4
RECORDS = 20_000


def fill(kafka: Kafka, topic: str, count: int = RECORDS) -> None:
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(topic, numbered(0, count))


def numbered(first: int, end: int) -> list[dict[str, Any]]:
    return [
        {"partition": n % PARTITIONS, "key": b"k%d" % (n % 50), "value": b"%d" % n}
        for n in range(first, end)
    ]


def all_offsets(count: int = RECORDS) -> dict[int, list[int]]:
    return {partition: list(range(count // PARTITIONS)) for partition in range(PARTITIONS)}


class Interrupted(ChainPublisher):
    """Puts a stray message between two halves of the first batches: into the pipeline's middle."""

    def __init__(
        self, connection: Connection, mapping: Mapping, window_type: type[Window], strays: list[str]
    ) -> None:
        super().__init__(connection, mapping, window_type=window_type)
        self._link = connection
        self._strays = strays

    async def send(self, records: Sequence[Record]) -> None:
        half = len(records) // 2
        await super().send(records[:half])
        stray = self._strays.pop() if half and self._strays else None
        if stray is not None:
            self._link.write(f"PUB {stray} 5\r\nstray\r\n".encode())
        await super().send(records[half:])
        if stray is not None:
            await self.drain()


class Meeting:
    """A publisher that sends nothing before both bridges have read the same positions."""

    def __init__(self, publisher: Publisher, both_have_read: asyncio.Barrier) -> None:
        self._publisher = publisher
        self._both_have_read: asyncio.Barrier | None = both_have_read

    async def open(self, marks: AbcMapping[int, Watermarks], *, known: Positions) -> dict[int, int]:
        positions = await self._publisher.open(marks, known=known)
        if self._both_have_read is not None:
            await self._both_have_read.wait()
            self._both_have_read = None
        return positions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)


async def test_stray_messages_in_the_pipeline_cost_a_session_each_and_nothing_else(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic)
    strays = ["flights.0.k1", "flights.9.stray", "flights.elsewhere"]

    report = await move_all(
        mock.bootstrap,
        nats_server.url,
        a_route(topic),
        stand_back_s=0.05,
        make_publisher=lambda c, m: Interrupted(c, m, Window, strays),
    )

    assert report.refusals == 3
    assert len(report.foreign_seqs) == 3
    assert report.stood_back == 0
    assert offsets(await stored_records(nats_server.url, a_route(topic))) == all_offsets()
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))
    assert proof.equal
    assert proof.foreign == 2  # the third is not under the route's subjects


async def test_with_a_plain_sequence_the_same_stray_message_loses_a_record(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    """The arm that must fail, or the test above would have no power."""
    fill(mock, topic)
    strays = ["flights.0.k1"]

    await move_all(
        mock.bootstrap,
        nats_server.url,
        a_route(topic),
        stand_back_s=0.05,
        make_publisher=lambda c, m: Interrupted(c, m, PlainSequenceWindow, strays),
    )

    assert offsets(await stored_records(nats_server.url, a_route(topic))) != all_offsets()
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))
    assert proof.difference is not None
    assert proof.difference.what == "the stream does not have this record"


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_two_live_bridges_store_each_record_once_and_in_order(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is stored is counted once the server has said so, however slow it is today.
    monkeypatch.setattr(checkpoint, "END_S", 30.0)
    fill(mock, topic)
    route = a_route(topic, shared=shared)
    both_have_read = asyncio.Barrier(2)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(
                move_all(
                    mock.bootstrap,
                    nats_server.url,
                    route,
                    stand_back_s=0.1,
                    make_publisher=lambda c, m: cast(
                        Publisher,
                        Meeting(
                            CheckpointPublisher(c, m) if shared else ChainPublisher(c, m),
                            both_have_read,
                        ),
                    ),
                ),
                name=name,
            )
            for name in ("one", "other")
        ]

    assert offsets(await stored_records(nats_server.url, route)) == all_offsets()
    assert sum(run.result().records for run in runs) == RECORDS
    assert sum(run.result().refusals for run in runs) >= 1, "they never met"


async def test_two_live_bridges_follow_a_growing_topic_in_lockstep(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 0)
    bridges = [
        Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic), stand_back_s=0.05)
        for _ in range(2)
    ]

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for bridge in bridges:
            tasks.create_task(bridge.run(), name="bridge")
        for n in range(0, 400, 20):
            records = [{"partition": k % PARTITIONS, "value": b"%d" % k} for k in range(n, n + 20)]
            await asyncio.to_thread(mock.produce, topic, records)
        await until_moved(bridges, PARTITIONS, 400 // PARTITIONS)
        for bridge in bridges:
            bridge.stop()

    assert offsets(await stored_records(nats_server.url, a_route(topic))) == all_offsets(400)


async def test_native_producers_beside_a_shared_route_are_not_disturbed_and_disturb_nothing(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic)
    route = a_route(topic, shared=True)
    client = await nats_py.connect(nats_server.url)
    published = 0
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(
                move_all(mock.bootstrap, nats_server.url, route), name="bridge"
            )
            while not moving.done():
                try:
                    await client.jetstream().publish("flights.2.native", b"n")
                    published += 1
                except nats_py.js.errors.NoStreamResponseError:
                    await asyncio.sleep(0.01)  # the bridge has not made the stream yet
    finally:
        await client.close()

    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=route)
    assert published > 0
    assert moving.result().refusals == 0
    assert (proof.equal, proof.records, proof.foreign) == (True, RECORDS, published)


async def test_a_route_becomes_shared_where_the_chain_left_off_and_never_goes_back(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, 1_000)
    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    await allow_batches(nats_server.url)
    mock.produce(topic, [{"partition": 1, "value": b"new"}] * 5)

    shared = await move_all(mock.bootstrap, nats_server.url, a_route(topic, shared=True))

    assert shared.records == 5
    with pytest.raises(Exception, match="is shared now"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic))


async def allow_batches(url: str) -> None:
    """What an operator does before a route becomes shared."""
    connection = await Connection.open(url, name="operator")
    try:
        stream = await connection.request("$JS.API.STREAM.INFO.FLIGHTS")
        config = json.loads(stream.payload)["config"]
        config |= {"allow_atomic": True, "allow_rollup_hdrs": True}
        body = json.dumps(config).encode()
        await connection.request("$JS.API.STREAM.UPDATE.FLIGHTS", body)
    finally:
        await connection.close()


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_a_server_killed_and_started_again_loses_nothing(
    nats_server: Server, mock: Kafka, topic: str, shared: bool
) -> None:
    fill(mock, topic, RECORDS // 2)
    route = a_route(topic, shared=shared)
    bridge = Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records >= 1_000 or running.done(), pause_s=0)
        nats_server.kill()
        mock.produce(topic, numbered(RECORDS // 2, RECORDS))  # a fast first session had it all
        await nats_server.restart()
        await until_moved([bridge], PARTITIONS, RECORDS // PARTITIONS)
        bridge.stop()

    assert running.result().sessions > 1
    assert offsets(await stored_records(nats_server.url, route)) == all_offsets()


async def test_a_server_that_stands_still_ends_the_session_and_nothing_is_stored_twice(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    fill(mock, topic, RECORDS // 2)
    route = a_route(topic)
    bridge = Bridge(
        kafka=mock.bootstrap,
        nats=nats_server.url,
        route=route,
        make_publisher=lambda c, m: ChainPublisher(c, m, stall_s=0.3),
    )

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records >= 1_000 or running.done(), pause_s=0)
        nats_server.pause()
        mock.produce(topic, numbered(RECORDS // 2, RECORDS))  # a fast first session had it all
        await until(lambda: bridge.progress.state is State.RECONNECTING)
        nats_server.resume()
        await until_moved([bridge], PARTITIONS, RECORDS // PARTITIONS)
        bridge.stop()

    assert running.result().sessions > 1
    assert offsets(await stored_records(nats_server.url, route)) == all_offsets()


@pytest.mark.parametrize("shared", [False, True])
async def test_told_to_stop_while_the_server_stands_still_it_ends_and_the_next_run_goes_on(
    nats_server: Server,
    mock: Kafka,
    topic: str,
    shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for waits in (Connection.writable, Connection.request, Connection.publish_and_wait):
        assert waits.__kwdefaults__ is not None
        monkeypatch.setitem(waits.__kwdefaults__, "timeout_s", 3_600.0)  # no answer is given up
    fill(mock, topic)
    route = a_route(topic, shared=shared)
    kind = CheckpointPublisher if shared else ChainPublisher
    bridge = Bridge(
        kafka=mock.bootstrap,
        nats=nats_server.url,
        route=route,
        make_publisher=lambda c, m: kind(c, m, stall_s=3_600.0),
    )

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bridge.run(), name="bridge")
        await until(lambda: bridge.progress.records >= 1_000 or running.done(), pause_s=0)
        nats_server.pause()
        bridge.stop()
        async with asyncio.timeout(30):
            await asyncio.wait({running})
        nats_server.resume()
    await move_all(mock.bootstrap, nats_server.url, route)

    assert running.result().ended == "stopped"
    assert offsets(await stored_records(nats_server.url, route)) == all_offsets()


async def test_a_batch_that_fails_by_a_fault_of_ours_does_not_pass_for_stored() -> None:
    link = cast(Connection, SimpleNamespace(is_open=True))
    publisher = CheckpointPublisher(link, Mapping(a_route("t", shared=True)))

    await publisher.send([Record(0, 7, 0, TimestampType.CREATE, b"k", b"v", ())])

    with pytest.raises(AssertionError):  # no session is open, so no frames can be made
        await publisher.drain()
