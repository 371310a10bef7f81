"""The client that a group makes for itself: how it comes back, and how it ends."""

import asyncio
import logging
from pathlib import Path

import nats.errors
import pytest

from millstream_coordinator.jetstream.wire import close, connect
from tests.helpers.servers import EMBEDDED, Server


async def test_clients_try_to_come_back_after_50_to_200_ms_each_after_another_wait(
    server: Server,
) -> None:
    clients = [await connect(server.url) for _ in range(8)]
    try:
        waits = [client.options["reconnect_time_wait"] for client in clients]
        tries = {client.options["max_reconnect_attempts"] for client in clients}
    finally:
        for client in clients:
            await close(client)

    assert all(0.05 <= wait <= 0.2 for wait in waits)
    assert len(set(waits)) == len(waits)
    assert tries == {-1}


async def test_a_client_whose_search_for_a_server_was_not_cancelled_ends_its_search(
    tmp_path: Path,
) -> None:
    with Server(EMBEDDED, tmp_path) as server:
        client = await connect(server.url)
        server.kill()
        async with asyncio.timeout(60):
            while client._reconnection_task is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    search = client._reconnection_task
    client._reconnection_task = None  # as if its cancellation had been dropped

    await close(client)

    async with asyncio.timeout(60):
        await asyncio.wait([search])
    assert search.done()


async def test_why_a_server_lets_a_client_in_no_more_is_told_once_until_it_is_back(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a user who was removed: it is tried for ever, since it may be let in again."""
    caplog.set_level(logging.DEBUG, logger="millstream_coordinator")
    client = await connect(server.url)
    refused = nats.errors.Error("nats: 'Authorization Violation'")
    try:
        for error in (OSError("no route"), refused, refused, refused):
            await client._error_cb(error)
        client.stats["reconnects"] += 1
        await client._error_cb(refused)
    finally:
        await close(client)

    told = [it for it in caplog.records if getattr(it, "event", "") == "connection_refused"]
    assert [it.levelname for it in told] == ["WARNING", "WARNING"]
    assert all("Authorization Violation" in it.getMessage() for it in told)
