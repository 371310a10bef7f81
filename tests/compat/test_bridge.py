"""The bridge on every server: each way to write, a restart in between, and the proof."""

import asyncio
from typing import Any

import pytest

from millstream_bridge import Bridge, ConfigurationError, Route, verify
from tests.helpers.kafka import Kafka, mock_kafka
from tests.helpers.versions import VersionServer

PARTITIONS = 3
MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "dense": {"mode": "dense", "stream": "{name}-{{partition}}"},
    "shared": {"shared": True},
}
WITH_BATCHES = ("2.12", "2.14", "2.15")


def route_of(name: str, mode: str) -> Route:
    settings = {"stream": name, **MODES[mode]}
    settings["stream"] = str(settings["stream"]).format(name=name)
    return Route(topic=name, subject=f"{name}.{{partition}}.{{key}}", **settings)


def produce(kafka: Kafka, topic: str) -> None:
    kafka.produce(
        topic,
        [{"partition": n % PARTITIONS, "key": b"k%d" % n, "value": b"%d" % n} for n in range(600)],
    )


@pytest.mark.parametrize("mode", list(MODES))
async def test_records_are_moved_over_a_restart(
    server: VersionServer, name: str, mode: str
) -> None:
    route = route_of(name, mode)
    with mock_kafka({name: PARTITIONS}) as kafka:
        if mode == "shared" and not server.version.startswith(WITH_BATCHES):
            with pytest.raises(ConfigurationError, match=r"2\.12 or later"):
                await Bridge(kafka=kafka.bootstrap, nats=server.url, route=route).run()
            return
        moved = 0
        for _ in range(2):
            await asyncio.to_thread(produce, kafka, name)
            bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
            moved += (await bridge.run(stop_at_end=True)).records
            server.kill()
            await server.restart()
        proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)

    assert moved == 1_200
    assert (proof.equal, proof.records) == (True, 1_200), proof.difference


async def test_a_dense_stream_that_begins_later_survives_a_restart_or_is_refused(
    server: VersionServer, name: str
) -> None:
    route = route_of(name, "dense")
    with mock_kafka({name: 1}) as kafka:
        # The mock keeps 5 MiB of a partition.
        await asyncio.to_thread(kafka.produce, name, [{"value": b"x" * 60_000}] * 120)
        bridge = Bridge(kafka=kafka.bootstrap, nats=server.url, route=route)
        if server.version.startswith("2.10"):
            with pytest.raises(ConfigurationError, match=r"2\.11 or later"):
                await bridge.run()
            return
        await bridge.run(stop_at_end=True)
        server.kill()
        await server.restart()
        proof = await verify(kafka=kafka.bootstrap, nats=server.url, route=route)

    assert proof.equal, proof.difference
    assert proof.records > 0
