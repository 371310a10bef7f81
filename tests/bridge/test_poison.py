"""Records that cannot be moved: the route says whether to stop, or to leave them out, counted."""

from typing import Any

import pytest

from millstream_bridge import PoisonRecord, Record, barrier
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.reader import read_stream
from millstream_bridge.model import Route, TimestampType
from millstream_bridge.records.headers import parse_block
from millstream_bridge.records.mapping import Mapping
from millstream_bridge.records.poison import Mark, mark, mark_in
from tests.bridge.moves import a_route, move_all, offsets, stored_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

TOO_LARGE: dict[str, Any] = {"partition": 0, "key": b"k", "value": b"x" * 1_048_500}
TOO_MANY_HEADERS: dict[str, Any] = {"partition": 0, "headers": [("h", b"x" * 70_000)]}
SMALL: dict[str, Any] = {"partition": 0, "key": b"k", "value": b"small"}


async def marks(url: str, route: Route) -> list[Mark]:
    connection = await Connection.open(url, name="test")
    subject = f"{Mapping(route).poison_subject('*')}.*"
    found = []
    try:
        async for messages in read_stream(connection, route.stream, subject, last_seq=1 << 62):
            found += [mark_in(parse_block(message.block)[1]) for _, message in messages]
    finally:
        await connection.close()
    return [mark for mark in found if mark is not None]


def test_a_mark_says_any_reason_in_one_short_line_of_ascii() -> None:
    record = Record(3, 7, 1_000, TimestampType.CREATE, b"k", b"v")

    made = mark(Mapping(a_route("t")), record, "parked", "ключ\r\nEvil: header\t" + "x" * 9_000)
    _, headers = parse_block(f"NATS/1.0\r\n{made.lines}\r\n".encode())
    found = mark_in(headers)

    assert found is not None
    assert (found.fate, found.source.kafka_partition, found.source.offset) == ("parked", 3, 7)
    assert found.reason.startswith("???? Evil: header xxx")
    assert len(found.reason) == 500


@pytest.mark.parametrize("shared", [False, True])
async def test_a_skipped_record_leaves_a_mark_and_is_counted(
    nats_server: Server, mock: Kafka, topic: str, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mock.create_topic(topic, 2)
    other = {**SMALL, "partition": 1}
    mock.produce(topic, [SMALL, TOO_LARGE, SMALL, other, TOO_MANY_HEADERS, SMALL, TOO_LARGE])
    route = a_route(topic, shared=shared, on_poison="skip")

    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert offsets(await stored_records(nats_server.url, route)) == {0: [0, 2, 4], 1: [0]}
    assert (report.records, report.skipped, report.parked) == (7, 3, 0)
    assert report.positions == {0: 6, 1: 1}
    found = await marks(nats_server.url, route)
    assert [(m.source.kafka_partition, m.source.offset, m.fate) for m in found] == [
        (0, 1, "skipped"),
        (0, 3, "skipped"),
        (0, 5, "skipped"),
    ]
    assert "1048576" in found[0].reason
    assert "headers take" in found[1].reason
    assert "project file" not in caplog.text  # it has made its choice


@pytest.mark.parametrize("shared", [False, True])
async def test_a_record_skipped_last_is_not_met_again(
    nats_server: Server, mock: Kafka, topic: str, shared: bool
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [SMALL, TOO_LARGE])
    route = a_route(topic, shared=shared, on_poison="skip")
    await move_all(mock.bootstrap, nats_server.url, route)
    anew = a_route(topic, shared=shared)
    await barrier(kafka=mock.bootstrap, nats=nats_server.url, route=anew, timeout_s=10)

    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert report.records == 0
    assert len(await marks(nats_server.url, route)) == 1


async def test_a_record_its_template_has_no_subject_for_is_poison(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    headed = {**SMALL, "headers": [("region", b"EU")]}
    mock.produce(topic, [headed, SMALL, headed])
    subject = "flights.{partition}.{header[region]}.{key}"

    with pytest.raises(PoisonRecord, match=r"partition 0 offset 1: .*\{header\[region\]\}"):
        await move_all(mock.bootstrap, nats_server.url, a_route(topic, subject=subject))
    route = a_route(topic, subject=subject, on_poison="skip")
    report = await move_all(mock.bootstrap, nats_server.url, route)

    assert (report.records, report.skipped) == (2, 1)
    assert offsets(await stored_records(nats_server.url, route)) == {0: [0, 2]}
