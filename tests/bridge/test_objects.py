"""The bridge's own Object Store client against nats-py's: one layout, either way."""

from typing import Any

import nats
import pytest

from millstream_bridge import ConfigurationError
from millstream_bridge.jetstream.api import call, stream_info
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.objects import CHUNK_BYTES, Objects
from millstream_broker import Broker, ServerOptions
from tests.helpers.servers import Server

DATA = bytes(range(256)) * 2_000


@pytest.mark.parametrize("data", [b"", b"x", b"y" * CHUNK_BYTES, DATA])
async def test_what_the_bridge_puts_any_client_gets(nats_server: Server, data: bytes) -> None:
    connection = await Connection.open(nats_server.url, name="test")
    objects = Objects(connection, "B")

    await objects.put("0/17", data, description="d", metadata={"reason": "why"})
    client = await nats.connect(nats_server.url)
    theirs = await (await client.jetstream().object_store("B")).get("0/17")
    await client.close()

    assert (theirs.data or b"") == data
    assert theirs.info.description == "d"
    assert await objects.get("0/17") == data
    info = await objects.info("0/17")
    assert info is not None
    assert (info.size, info.metadata) == (len(data), {"reason": "why"})
    await connection.close()


async def test_what_another_client_puts_the_bridge_gets(nats_server: Server) -> None:
    client = await nats.connect(nats_server.url)
    theirs: Any = await client.jetstream().create_object_store("B")
    await theirs.put("name", DATA)
    connection = await Connection.open(nats_server.url, name="test")

    assert await Objects(connection, "B").get("name") == DATA
    await connection.close()
    await client.close()


async def test_a_server_that_takes_less_than_a_chunk_gets_smaller_ones() -> None:
    options = ServerOptions(host="127.0.0.1", port=0, jetstream=True, max_payload=8_192)
    async with Broker(options=options) as broker:
        connection = await Connection.open(broker.url, name="test")
        objects = Objects(connection, "B")

        info = await objects.put("a", DATA)

        assert info.chunks > len(DATA) // 8_192
        assert await objects.get("a") == DATA
        await connection.close()


async def test_putting_again_and_deleting_leave_nothing_behind(nats_server: Server) -> None:
    connection = await Connection.open(nats_server.url, name="test")
    objects = Objects(connection, "B")
    assert await objects.list() == []
    assert await objects.get("a") is None
    assert not await objects.delete("a")

    await objects.put("a", DATA)
    await objects.put("b", b"b")
    await objects.put("a", b"again")
    assert await objects.get("a") == b"again"
    assert [info.name for info in await objects.list()] == ["b", "a"]
    assert await objects.delete("a")

    assert await objects.info("a") is None
    assert [info.name for info in await objects.list()] == ["b"]
    answer = await connection.request("$JS.API.STREAM.INFO.OBJ_B")
    assert b'"messages":3,' in answer.payload.replace(b" ", b"")  # b, its bytes, a's deletion
    await connection.close()


async def test_of_an_object_that_is_refused_midway_nothing_takes_room(nats_server: Server) -> None:
    connection = await Connection.open(nats_server.url, name="test")
    bucket = {
        "name": "OBJ_B",
        "subjects": ["$O.B.C.>", "$O.B.M.>"],
        "storage": "file",
        "discard": "new",
        "max_bytes": 2 * CHUNK_BYTES + 1_000,
        "allow_rollup_hdrs": True,
    }
    await call(connection, "STREAM.CREATE.OBJ_B", bucket)
    objects = Objects(connection, "B")

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="maximum bytes exceeded"):
            await objects.put("a", DATA)

    info = await stream_info(connection, "OBJ_B")
    assert info is not None
    assert info.messages == 0
    assert info.last_seq > 0  # some of it was stored, each time
    await objects.put("a", b"smaller")
    assert await objects.get("a") == b"smaller"
    await connection.close()
