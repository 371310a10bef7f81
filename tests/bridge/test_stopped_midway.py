"""Runs cut off at any moment: large records and parked ones are stored once, whole and in order."""

import asyncio
import random
from typing import Any

import pytest

from millstream_bridge import Bridge
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.moving.parked import ParkedRecords
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all, stored_records
from tests.bridge.test_bad_input import make_stream
from tests.bridge.test_poison import marks
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

RECORDS = 300
MESSAGE_MAX = 6_000


def a_record(n: int) -> dict[str, Any]:
    """Every fifth is large, every seventh has too many headers for one message."""
    value = b"%d " % n * (5_000 if n % 5 == 0 else 1)
    headers = [("h", b"x" * 70_000)] if n % 7 == 0 else []
    return {"partition": 0, "key": b"%d" % (n % 3), "value": value, "headers": headers}


@pytest.mark.parametrize("changes", [{"large": "chunks"}, {"large": "object-store"}])
@pytest.mark.parametrize("shared", [False, True])
async def test_what_was_cut_off_is_made_whole(
    real_nats_server: Server,
    mock: Kafka,
    topic: str,
    changes: dict[str, Any],
    shared: bool,
) -> None:
    chance = random.Random(1)
    mock.create_topic(topic, 1)
    records = [a_record(n) for n in range(RECORDS)]
    mock.produce(topic, records)
    await make_stream(
        real_nats_server.url,
        max_msg_size=MESSAGE_MAX,
        allow_atomic=True,
        allow_rollup_hdrs=True,
    )
    route = a_route(topic, on_poison="park", shared=shared, **changes)

    for _ in range(6):
        running = asyncio.create_task(
            Bridge(kafka=mock.bootstrap, nats=real_nats_server.url, route=route).run()
        )
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        running.cancel()
        await asyncio.wait({running})
    await move_all(mock.bootstrap, real_nats_server.url, route)

    stored = (await stored_records(real_nats_server.url, route))[0]
    whole = [n for n in range(RECORDS) if n % 7]
    assert [record.offset for record in stored] == whole
    assert [record.value for record in stored] == [records[n]["value"] for n in whole]
    aside = [n for n in range(RECORDS) if n % 7 == 0]
    assert [mark.source.offset for mark in await marks(real_nats_server.url, route)] == aside
    connection = await Connection.open(real_nats_server.url, name="test")
    parked = await ParkedRecords(connection, Mapping(route)).list()
    await connection.close()
    assert [it.offset for it in parked] == aside
