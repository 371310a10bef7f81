"""What a server knows after it was killed, or stopped, and started again on the same store."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conformance.client import MS, SECOND, Client, encode, eventually
from tests.conformance.conftest import OpenServer
from tests.helpers.servers import Server


async def restart(server: Server, how: str) -> None:
    if how == "kill":
        server.kill()
    else:
        assert await server.stop() == 0
    await server.restart()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    async with Client.open(server.port) as client:
        yield client


both_ways = pytest.mark.parametrize("how", ["kill", "stop"])
with_acks = pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "kill",
            marks=pytest.mark.differs(
                "real", "it writes consumer state a moment after the ack", always=False
            ),
        ),
        "stop",
    ],
)


@both_ways
async def test_messages_and_configuration_are_still_there(
    open_server: OpenServer, how: str
) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S", max_msgs=100, description="kept", metadata={"a": "b"})
            await client.stored("S.a", b"1", {"K": "v"})
            await client.stored("S.b", bytes(range(256)))
            before = await client.ok("STREAM.INFO.S")
        await restart(server, how)
        async with connected(server) as client:
            after = await client.ok("STREAM.INFO.S")
            message = (await client.ok("STREAM.MSG.GET.S", {"seq": 1}))["message"]
            payloads = await client.payloads_of("S")

    assert after["config"] == before["config"]
    assert after["created"] == before["created"]
    assert after["state"] == before["state"]
    assert message["hdrs"]
    assert payloads == [b"1", bytes(range(256))]


async def test_everything_acknowledged_before_a_kill_is_there_afterwards(
    open_server: OpenServer,
) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            inbox = await client.subscribe()
            for block in range(20):
                numbers = range(block * 50, block * 50 + 50)
                await client.raw.send(
                    b"".join(encode("S.a", b"%d" % n, reply=inbox.subject) for n in numbers)
                )
            acks = [json.loads(ack.payload) for ack in await inbox.take(700)]
            server.kill()
        await server.restart()
        async with connected(server) as client:
            state = await client.state("S")
            first = await client.payloads_of("S")

    assert [ack["seq"] for ack in acks] == list(range(1, 701))
    assert state["last_seq"] >= 700
    assert first[:700] == [b"%d" % n for n in range(700)]


@both_ways
async def test_deleted_and_purged_messages_stay_away(open_server: OpenServer, how: str) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            for subject in "abcabc":
                await client.stored(f"S.{subject}")
            await client.ok("STREAM.MSG.DELETE.S", {"seq": 2})
            await client.ok("STREAM.PURGE.S", {"filter": "S.c"})
            before = await client.state("S", deleted_details=True)
        await restart(server, how)
        async with connected(server) as client:
            after = await client.state("S", deleted_details=True)

    assert after == before
    assert (after["messages"], after["deleted"]) == (3, [2, 3, 6])


async def test_the_last_sequence_survives_though_its_message_is_gone(
    open_server: OpenServer,
) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.fill("S", 3)
            await client.ok("STREAM.PURGE.S")
        await restart(server, "kill")
        async with connected(server) as client:
            assert await client.stored("S.a") == 4


@both_ways
async def test_message_ids_are_still_known(open_server: OpenServer, how: str) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.stored("S.a", b"", {"Nats-Msg-Id": "one"})
        await restart(server, how)
        async with connected(server) as client:
            answer = await client.store("S.a", b"", {"Nats-Msg-Id": "one"})

    assert answer == {"stream": "S", "seq": 1, "duplicate": True}


async def test_the_last_message_id_is_still_known(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.stored("S.a", b"", {"Nats-Msg-Id": "one"})
        await restart(server, "kill")
        async with connected(server) as client:
            headers = {"Nats-Msg-Id": "two", "Nats-Expected-Last-Msg-Id": "one"}
            assert await client.stored("S.a", b"", headers) == 2


@with_acks
async def test_a_consumer_goes_on_where_it_was(open_server: OpenServer, how: str) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.fill("S", 6)
            await client.consumer("S", "c", ack_wait=400 * MS)
            got = await client.fetch("S", "c", 3)
            await client.ack(got[0])
            await client.ack(got[2])
            before = await client.consumer_info("S", "c")
        await restart(server, how)
        async with connected(server) as client:
            after = await client.consumer_info("S", "c")
            inbox = await client.pull("S", "c", {"batch": 4, "expires": 5 * SECOND})
            later = await inbox.take(4)

    assert after["config"] == before["config"]
    assert after["created"] == before["created"]
    assert after["num_pending"] == before["num_pending"] == 3
    assert after["num_ack_pending"] == 1
    assert after["delivered"]["stream_seq"] == 3
    assert sorted(message.stream_seq for message in later) == [2, 4, 5, 6]
    [again] = [message for message in later if message.stream_seq == 2]
    assert again.num_delivered == 2


@with_acks
async def test_an_acked_message_does_not_come_again(open_server: OpenServer, how: str) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.fill("S", 2)
            await client.consumer("S", "c")
            [first] = await client.fetch("S", "c", 1)
            await client.ack(first)
        await restart(server, how)
        async with connected(server) as client:
            info = await client.consumer_info("S", "c")
            [second] = await client.fetch("S", "c", 1)

    assert (info["num_ack_pending"], info["num_pending"]) == (0, 1)
    assert info["ack_floor"]["stream_seq"] == 1
    assert (second.payload, second.num_delivered) == (b"2", 1)


async def test_work_queue_messages_acked_before_a_stop_stay_away(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S", retention="workqueue")
            await client.consumer("S", "c")
            await client.fill("S", 3)
            [first] = await client.fetch("S", "c", 1)
            await client.ack(first)

            async def is_removed() -> bool:
                return bool((await client.state("S"))["messages"] == 2)

            await eventually(is_removed)
        await restart(server, "stop")
        async with connected(server) as client:
            state = await client.state("S")

    assert (state["messages"], state["first_seq"]) == (2, 2)


async def test_memory_streams_are_gone_after_a_kill(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("FILE")
            await client.stream("MEM", storage="memory")
            await client.fill("MEM", 2)
        await restart(server, "kill")
        async with connected(server) as client:
            names = (await client.ok("STREAM.NAMES"))["streams"]
            left = (await client.state("MEM"))["messages"] if "MEM" in names else 0

    assert "FILE" in names
    assert left == 0


async def test_what_expired_while_the_server_was_down_is_gone(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S", max_age=300 * MS, duplicate_window=200 * MS)
            await client.fill("S", 3)
            server.kill()
        await asyncio.sleep(0.4)  # the time that passes is what the test is about
        await server.restart()
        async with connected(server) as client:
            state = await client.state("S")
            seq = await client.stored("S.a")

    assert (state["messages"], state["last_seq"]) == (0, 3)
    assert seq == 4


async def test_ttls_go_on_running_after_a_restart(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S", allow_msg_ttl=True)
            await client.stored("S.a", b"goes", {"Nats-TTL": "1"})
            await client.stored("S.a", b"stays")
        await restart(server, "kill")
        async with connected(server) as client:

            async def is_alone() -> bool:
                return bool((await client.state("S"))["messages"] == 1)

            await eventually(is_alone)
            assert await client.payloads_of("S") == [b"stays"]


async def test_a_deleted_stream_stays_deleted(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S")
            await client.fill("S", 1)
            await client.ok("STREAM.DELETE.S")
        await restart(server, "kill")
        async with connected(server) as client:
            assert (await client.error("STREAM.INFO.S")).err_code == 10059


async def test_an_unfinished_batch_is_gone(open_server: OpenServer) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("S", allow_atomic=True)
            await client.request("S.a", b"1", {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"})
        await restart(server, "kill")
        async with connected(server) as client:
            state = await client.state("S")

    assert (state["messages"], state["last_seq"]) == (0, 0)


async def test_the_port_stays_the_same(open_server: OpenServer) -> None:
    async with open_server() as server:
        port, pid = server.port, server.pid
        await restart(server, "kill")

        assert server.port == port
        assert server.pid != pid


@with_acks
async def test_a_sourced_work_queue_that_was_emptied_goes_on_where_it_was(
    open_server: OpenServer, how: str
) -> None:
    async with open_server() as server:
        async with connected(server) as client:
            await client.stream("ORIGIN")
            await client.stream(
                "QUEUE", subjects=None, retention="workqueue", sources=[{"name": "ORIGIN"}]
            )
            await client.consumer("QUEUE", "c", ack_policy="explicit")
            await client.fill("ORIGIN", 3)
            for message in await client.fetch("QUEUE", "c", 3):
                await client.ack(message)
        await restart(server, how)
        async with connected(server) as client:
            await client.stored("ORIGIN.b", b"4")

            async def has_come() -> bool:
                return bool((await client.state("QUEUE"))["last_seq"] >= 4)

            await eventually(has_come, timeout_s=20)
            info = await client.ok("STREAM.INFO.QUEUE")

    assert info["state"]["messages"] == 1
    assert info["state"]["last_seq"] == 4
    assert info["sources"][0]["seq"] == 4
