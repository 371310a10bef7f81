"""The proxy cuts, stalls and releases; what a chaos run concludes rests on that."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.helpers.proxy import Proxy

TIMEOUT_S = 10


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Proxy(["nats://127.0.0.1:1", f"nats://127.0.0.1:{port}"]) as opened:
        yield opened


async def _connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))


async def test_what_goes_in_comes_out_whichever_target_takes_it(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)

    writer.write(b"one")

    async with asyncio.timeout(TIMEOUT_S):
        assert await reader.readexactly(3) == b"one"
    assert proxy.num_open == 1
    writer.close()


async def test_a_cut_resets_the_connection_and_the_next_one(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"one")
    await reader.readexactly(3)

    proxy.cut()

    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        second, _ = await _connect(proxy)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await second.readexactly(1)
    assert proxy.num_refused == 1
    writer.close()


@pytest.mark.parametrize("up", [True, False])
async def test_a_stall_holds_back_until_the_release_and_loses_nothing(
    proxy: Proxy, up: bool
) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"one")
    await reader.readexactly(3)

    proxy.stall(up=up, down=not up)
    writer.write(b"two")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.readexactly(3)
    proxy.release()
    async with asyncio.timeout(TIMEOUT_S):
        assert await reader.readexactly(3) == b"two"
    writer.close()
