"""Records that were parked: shown as they were, repaired, replayed once, dropped."""

import asyncio
from typing import Any

import pytest

from millstream_bridge import Bridge, ConfigurationError, PoisonRecord, Record, Route
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.reader import read_stream
from millstream_bridge.model import TimestampType
from millstream_bridge.moving.parked import ParkedRecords
from millstream_bridge.records.headers import SOURCE_HEADER, SourceHeader, parse_block
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, offsets, stored_records
from tests.bridge.test_poison import SMALL, TOO_LARGE, TOO_MANY_HEADERS, marks
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

HEADED = {**TOO_MANY_HEADERS, "key": None, "timestamp": 1_357_034_400_000}


class Desk:
    """Parked records in an operator's hands."""

    def __init__(self, connection: Connection, route: Route) -> None:
        self.connection = connection
        self.route = route
        self.records = ParkedRecords(connection, Mapping(route))

    async def parked(self) -> list[tuple[int, int, bool]]:
        return [(p.kafka_partition, p.offset, p.is_repaired) for p in await self.records.list()]

    async def replayed(self) -> list[tuple[int, int, bytes]]:
        """Sequence, offset and payload of all records marked as replayed."""
        found = []
        async for messages in read_stream(
            self.connection, self.route.stream, "flights.*.*", last_seq=1 << 62
        ):
            for seq, message in messages:
                headers = dict(parse_block(message.block)[1])
                if SOURCE_HEADER not in headers:
                    continue  # a checkpoint
                source = SourceHeader.parse(headers[SOURCE_HEADER])
                if "r" in source.flags:
                    found.append((seq, source.offset, message.payload))
        return found


async def a_desk(url: str, route: Route) -> Desk:
    return Desk(await Connection.open(url, name="test"), route)


@pytest.mark.parametrize(
    "changes", [{}, {"shared": True}, {"mode": "dense", "stream": "FLIGHTS-{partition}"}]
)
async def test_what_cannot_be_moved_is_kept_whole(
    nats_server: Server, mock: Kafka, topic: str, changes: dict[str, Any]
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [SMALL, TOO_LARGE, HEADED, SMALL])
    route = a_route(topic, on_poison="park", **changes)

    report = await move_all(mock.bootstrap, nats_server.url, route)
    again = await move_all(mock.bootstrap, nats_server.url, route)

    assert (report.records, report.parked, report.skipped) == (4, 2, 0)
    assert again.records == 0
    desk = await a_desk(nats_server.url, route)
    found = await desk.records.list()
    assert [(p.kafka_partition, p.offset, p.is_repaired) for p in found] == [
        (0, 1, False),
        (0, 2, False),
    ]
    assert "1048576" in found[0].reason
    assert (await desk.records.get(0, 1))[1].value == TOO_LARGE["value"]
    assert (await desk.records.get(0, 2))[1] == Record(
        0, 2, 1_357_034_400_000, TimestampType.CREATE, None, None, tuple(HEADED["headers"])
    )
    await desk.connection.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_repaired_record_is_replayed_once_while_the_bridge_runs(
    nats_server: Server, mock: Kafka, topic: str, shared: bool
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [SMALL, TOO_LARGE, SMALL])
    route = a_route(topic, on_poison="park", shared=shared)
    await move_all(mock.bootstrap, nats_server.url, route)
    desk = await a_desk(nats_server.url, route)
    with pytest.raises(PoisonRecord, match=r"partition 0 offset 1: .*repair it first"):
        await desk.records.replay(0, 1)
    _, record = await desk.records.get(0, 1)

    await desk.records.repair(record._replace(value=b"repaired"))
    await desk.records.park(record, "met again")  # by a bridge that was killed before its mark
    seq = await desk.records.replay(0, 1)

    assert await desk.replayed() == [(seq, 1, b"repaired")]
    assert await desk.parked() == []
    mock.produce(topic, [SMALL])
    report = await move_all(mock.bootstrap, nats_server.url, route)
    assert (report.records, report.positions) == (1, {0: 4})
    assert offsets(await stored_records(nats_server.url, route)) == {0: [0, 2, 3]}
    with pytest.raises(ConfigurationError, match="offset 1 is not parked"):
        await desk.records.replay(0, 1)
    await desk.connection.close()


async def test_a_replay_that_was_killed_is_finished_not_repeated(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [TOO_LARGE, SMALL])
    route = a_route(topic, on_poison="park")
    await move_all(mock.bootstrap, nats_server.url, route)
    desk = await a_desk(nats_server.url, route)
    record = (await desk.records.get(0, 0))[1]._replace(value=b"repaired")
    await desk.records.repair(record)
    seq = await desk.records.replay(0, 0)
    await desk.records.park(record, "as if it had not been deleted")
    await asyncio.sleep(0.5)  # so that the server no longer takes it for a duplicate by itself

    assert await desk.records.replay(0, 0) == seq
    assert len(await desk.replayed()) == 1
    await desk.connection.close()


async def test_a_large_record_is_replayed_once_its_route_takes_large_ones(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [TOO_LARGE])
    await move_all(mock.bootstrap, nats_server.url, a_route(topic, on_poison="park"))
    desk = await a_desk(nats_server.url, a_route(topic, on_poison="park", large="chunks"))

    await desk.records.replay(0, 0)

    assert [payload for _, _, payload in await desk.replayed()] == [b""]
    assert await desk.parked() == []
    await desk.connection.close()


async def test_what_cannot_be_replayed_is_said(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [TOO_LARGE])
    dense = a_route(topic, on_poison="park", mode="dense", stream="FLIGHTS-{partition}")
    await move_all(mock.bootstrap, nats_server.url, dense)
    desk = await a_desk(nats_server.url, dense)

    with pytest.raises(ConfigurationError, match="dense stream has no place"):
        await desk.records.replay(0, 0)
    stranger = Record(0, 7, 0, TimestampType.CREATE, None, None)
    for wrong in (
        desk.records.drop(0, 7),
        desk.records.get(1, 0),
        desk.records.repair(stranger),
    ):
        with pytest.raises(ConfigurationError, match="is not parked"):
            await wrong
    await desk.records.drop(0, 0)

    assert await desk.parked() == []
    await desk.connection.close()


async def test_a_record_the_bridge_has_not_passed_is_not_replayed(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [SMALL])
    route = a_route(topic, on_poison="park")
    await Bridge(kafka=mock.bootstrap, nats=nats_server.url, route=route).run(stop_at_end=True)
    desk = await a_desk(nats_server.url, route)
    await desk.records.park(Record(0, 1, 0, TimestampType.CREATE, None, b"x"), "why")

    with pytest.raises(ConfigurationError, match="has not passed it yet"):
        await desk.records.replay(0, 1)
    assert await marks(nats_server.url, route) == []
    await desk.connection.close()
