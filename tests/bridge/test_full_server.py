"""A server that has no room left: said in one line, waited out, nothing lost and nothing twice."""

import asyncio
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from millstream_bridge import Bridge
from millstream_bridge.moving.checkpoint import CheckpointPublisher
from tests.bridge.moves import a_route, offsets, stored_records, until
from tests.coordinator.test_connections import configured
from tests.helpers.kafka import Kafka

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
    if not route.shared:
        assert (before, refusals) == (room_for, 0)
    assert re.search("takes nothing now: .*insufficient resources", caplog.text)
    assert "somebody else" not in caplog.text
    assert offsets(stored) == {0: [*range(RECORDS)]}
