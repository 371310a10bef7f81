"""A member that is told to end while its server is gone must not wait for an answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from millstream_coordinator import Group, Message
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

DRAIN_TIMEOUT_S = 30.0
"""The group's default: what a stop took when nobody could answer."""


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    kind = str(request.param)
    if kind == REAL:
        require.need("nats")
    with Server(kind, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_stop_without_a_server_does_not_wait_for_the_drain_timeout(
    server: Server, fault: str
) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="S", subjects=["s.>"])
    await client.close()
    group = Group(server.url, stream="S", name="g", partitions=2)

    @group.handler(key="s.*.{key}")
    async def handle(_message: Message) -> None: ...

    running = asyncio.create_task(group.run(handle_signals=False))
    async with asyncio.timeout(60):
        while len(group.partitions) < 2:  # noqa: ASYNC110 - what a group shows is polled
            await asyncio.sleep(0.01)

    getattr(server, fault)()
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S / 3):
            await group.stop()
            await running
    finally:
        if fault == "pause":
            server.resume()
