"""The client that a group makes for itself: how it ends."""

import asyncio
from pathlib import Path

from millstream_coordinator.jetstream.wire import close, connect
from tests.helpers.servers import EMBEDDED, Server


async def test_a_client_whose_search_for_a_server_was_not_cancelled_ends_its_search(
    tmp_path: Path,
) -> None:
    with Server(EMBEDDED, tmp_path) as server:
        client = await connect(server.url)
        server.kill()
        async with asyncio.timeout(10):
            while client._reconnection_task is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    search = client._reconnection_task
    client._reconnection_task = None  # as if its cancellation had been dropped

    await close(client)

    async with asyncio.timeout(10):
        await asyncio.wait([search])
    assert search.done()
