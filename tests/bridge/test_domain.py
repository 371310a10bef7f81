"""A leaf's bridge, and JetStream in the hub: all it does is in that domain, nothing in its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import pytest

from millstream_bridge import BackBridge, Bridge, NatsTarget, barrier, cut_over, roll_back, verify
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.moving.parked import ParkedRecords
from millstream_bridge.moving.sharing import Members
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_cutover import commit
from tests.bridge.test_poison import SMALL, TOO_MANY_HEADERS
from tests.bridge.topics import all_records
from tests.coordinator.test_connections import configured
from tests.helpers.kafka import Kafka, free_ports
from tests.helpers.servers import Server

pytestmark = pytest.mark.real_server


@asynccontextmanager
async def leaf_of_a_hub(folder: Path) -> AsyncIterator[Server]:
    """A server with a JetStream of its own, linked to the one whose JetStream is domain ``hub``."""
    (port,) = free_ports(1)
    for name in ("hub", "leaf"):
        (folder / name).mkdir()
    hub = f'leafnodes {{ listen: "127.0.0.1:{port}" }}'
    leaf = f'leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{port}" }}] }}'
    async with (
        configured(folder / "hub", hub, jetstream="domain: hub"),
        configured(folder / "leaf", leaf, jetstream="domain: leaf") as server,
    ):
        client = await nats.connect(server.url)
        try:
            async with asyncio.timeout(30):
                while True:
                    with suppress(nats.errors.Error, nats.js.errors.Error):
                        await client.jetstream(domain="hub", timeout=1).account_info()
                        break
                    await asyncio.sleep(0.1)
            yield server
        finally:
            await client.close()


async def streams(url: str, **where: str) -> list[str]:
    client = await nats.connect(url)
    try:
        found = await client.jetstream(**where).streams_info()
        return sorted(str(one.config.name) for one in found)
    finally:
        await client.close()


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_records_groups_and_positions_are_all_in_the_domain(
    tmp_path: Path, mock: Kafka, topic: str, shared: bool
) -> None:
    mock.create_topic(topic, 2)
    mock.create_topic(f"{topic}-copy", 2)
    large = {"partition": 1, "value": b"x" * 2_000_000}
    mock.produce(
        topic, [SMALL, {**SMALL, "partition": 1}, {**TOO_MANY_HEADERS, "key": b"k"}, large]
    )
    route = a_route(topic, shared=shared, on_poison="park", large="object-store")
    kafka = mock.bootstrap

    async with leaf_of_a_hub(tmp_path) as server:
        target = NatsTarget(url=server.url, domain="hub")
        there: dict[str, Any] = {"kafka": kafka, "nats": target, "route": route}
        moved = await move_all(kafka, target, route)
        await barrier(**there, timeout_s=10)
        first = await verify(**there)
        home = BackBridge(**there, topic=f"{topic}-copy", everything=True)
        returned = await home.run(stop_at_end=True)
        commit(mock, topic, topic, {0: 2, 1: 1})
        groups: dict[str, Any] = {"kafka_group": topic, "group": "g", "is_stopped": True}
        cut = await cut_over(**there, **groups, apply=True)
        back = await roll_back(**there, **groups, apply=True)
        connection = await Connection.open(target, name="test")
        parked = ParkedRecords(connection, Mapping(route))
        _, record = await parked.get(0, 1)
        await parked.repair(record._replace(headers=()))
        await parked.replay(0, 1)
        await connection.close()
        async with Members(target, group="bridges", slots=2, member="a") as members:
            bridge = Bridge(**there, share=members.share(route))
            running = asyncio.create_task(bridge.run())
            mock.produce(topic, [SMALL])
            await barrier(**there, timeout_s=60)
            bridge.stop()
            await running
        beside = await streams(server.url)
        inside = await streams(server.url, domain="hub")

    assert beside == []
    assert inside == [
        "FLIGHTS",
        "KV_MILLSTREAM_bridges",
        "KV_MILLSTREAM_g",
        f"OBJ_MILLSTREAM_LARGE_{topic}",
        f"OBJ_MILLSTREAM_PARKED_{topic}",
    ]
    assert (moved.records, moved.parked, first.equal) == (4, 1, True)
    assert returned.records == 3
    assert len(all_records(mock, f"{topic}-copy")) == 3
    assert cut.applied, cut.problems
    assert back.applied, back.problems
