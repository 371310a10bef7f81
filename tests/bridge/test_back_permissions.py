"""The way back works with exactly the rights that are listed."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from millstream_bridge import BridgeError
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.jetstream import consumer
from millstream_bridge.project.permissions import Purpose, needs
from tests.bridge.moves import a_route
from tests.bridge.rights import make_topic, permit
from tests.bridge.test_cli import SUBJECT, run
from tests.helpers.kafka import Kafka, KafkaNode
from tests.helpers.require import need
from tests.helpers.servers import Server, real_server

ROUTE = a_route("flights", shared=True)
LISTED = needs(Purpose.BACK, [ROUTE]).publish


async def fill(url: str) -> None:
    client = await nats.connect(url)
    try:
        await client.jetstream().add_stream(name="FLIGHTS", subjects=["flights.>"])
        await client.jetstream().publish("flights.0.N1", b"native")
    finally:
        await client.close()


async def back_with(mock: Kafka, folder: Path, publish: Sequence[str]) -> int:
    """A way back by a user who may publish to just these; how many records it brought."""
    mock.create_topic("flights", 1)
    listed = replace(needs(Purpose.BACK, [ROUTE]), publish=tuple(publish))
    config = folder / "server.conf"
    text = (
        "authorization { users: [\n{ user: all, password: p }\n"
        f"{{ user: back, password: p, {listed.config_text()} }}\n] }}\n"
    )
    await asyncio.to_thread(config.write_text, text)
    async with real_server(folder / "nats", arguments=["-c", str(config)]) as server:
        address = server.url.removeprefix("nats://")
        await fill(f"nats://all:p@{address}")
        bridge = BackBridge(kafka=mock.bootstrap, nats=f"nats://back:p@{address}", route=ROUTE)
        async with asyncio.timeout(30):
            return (await bridge.run(stop_at_end=True)).records


@pytest.mark.real_server
@pytest.mark.parametrize("few", [consumer.FEW, 0])
async def test_the_listed_subjects_are_enough(
    mock: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Also where all of the stream is asked for."""
    need("nats")
    monkeypatch.setattr(consumer, "FEW", few)

    assert await back_with(mock, tmp_path, LISTED) == 1


@pytest.mark.real_server
@pytest.mark.parametrize("missing", LISTED)
async def test_each_subject_is_needed_and_named(mock: Kafka, tmp_path: Path, missing: str) -> None:
    need("nats")

    with pytest.raises(BridgeError, match=r"ermission") as error:
        await back_with(mock, tmp_path, [it for it in LISTED if it != missing])

    assert "\n" not in str(error.value)
    assert ":p@" not in str(error.value)


@pytest.mark.kafka
async def test_the_listed_operations_are_enough_on_kafka(
    secured: KafkaNode,
    topic: str,
    nats_server: Server,
) -> None:
    make_topic(secured, topic)
    await fill(nats_server.url)
    route = a_route(topic, shared=True)
    options = KafkaNode.options_of(KafkaNode.BRIDGE)
    lines = needs(Purpose.BACK, [route]).kafka

    async def run() -> int:
        bridge = BackBridge(
            kafka=secured.bootstrap, nats=nats_server.url, route=route, kafka_options=options
        )
        async with asyncio.timeout(60):
            return (await bridge.run(stop_at_end=True)).records

    with pytest.raises(BridgeError, match="uthorization"):
        await run()
    permit(secured, [line for line in lines if line[0] != "transactional id"])
    with pytest.raises(BridgeError, match="uthorization"):
        await run()
    permit(secured, lines)

    assert await run() == 1


def test_the_command_prints_them() -> None:
    done = run(
        *("permissions", "--for", "back", "--kafka", "127.0.0.1:1", "--json"),
        *("--topic", "flights", "--stream", "FLIGHTS", "--subject", SUBJECT),
    )

    assert json.loads(done.stdout)["publish"] == list(LISTED)
