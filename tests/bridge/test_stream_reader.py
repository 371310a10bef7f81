"""Reading a stream to its end: all of it, whatever statuses come in between."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from millstream_bridge.errors import ConnectionLost
from millstream_bridge.jetstream import consumer, reader
from millstream_bridge.jetstream.connection import Connection, Message
from millstream_bridge.jetstream.consumer import ALL
from millstream_bridge.jetstream.reader import BATCH_MESSAGES, _Feed, read_stream, sequence
from tests.helpers.servers import Server


async def filled(server: Server, count: int) -> Connection:
    return await stream_of(server, [*(f"s.{n % 2}" for n in range(count - 1)), "s.last"])


async def stream_of(server: Server, subjects: Sequence[str]) -> Connection:
    """A connection to a stream S that has a message of each of these subjects, in this order."""
    connection = await Connection.open(server.url, name="test")
    body = {"name": "S", "subjects": ["s.>"]}
    await connection.request("$JS.API.STREAM.CREATE.S", json.dumps(body).encode())
    for start in range(0, len(subjects), 1_000):  # a server drops what it has no place for
        *first, last = subjects[start : start + 1_000]
        connection.write(b"".join(b"PUB %b 6\r\nstored\r\n" % it.encode() for it in first))
        await connection.request(last, b"stored")
    return connection


@pytest.mark.parametrize("count", [1, BATCH_MESSAGES, BATCH_MESSAGES + 1, 3 * BATCH_MESSAGES])
async def test_all_messages_are_read_once_and_in_order(nats_server: Server, count: int) -> None:
    connection = await filled(nats_server, count)
    try:
        for _ in range(3):
            read = [
                seq
                async for messages in read_stream(connection, "S", "s.>", last_seq=count)
                for seq, _ in messages
            ]
            assert read == list(range(1, count + 1))
    finally:
        await connection.close()


async def read_from_50(connection: Connection) -> list[int]:
    """The sequences of what the subject s.1 has from there on."""
    return [
        seq
        async for messages in read_stream(
            connection, "S", "s.1", first_seq=50, last_seq=connection.max_payload
        )
        for seq, _ in messages
    ]


async def test_a_filter_and_a_first_sequence_are_kept_to(nats_server: Server) -> None:
    connection = await filled(nats_server, 101)
    try:
        read = await read_from_50(connection)
    finally:
        await connection.close()

    assert read == list(range(50, 101, 2))


@pytest.mark.parametrize(
    ("subject", "is_all_asked_for"),
    [("s.>", True), ("s.*", False), ("s.*.odd", True), ("s.last", False), ("s.1.odd", False)],
)
async def test_where_most_is_wanted_all_is_asked_for_and_the_rest_dropped(
    nats_server: Server, subject: str, *, is_all_asked_for: bool
) -> None:
    kinds = ["s.0.odd", "s.1.odd", "s.2.odd", "s.%07d"]
    count = 4 * BATCH_MESSAGES
    subjects = [kinds[n % 4].replace("%07d", f"{n:07}") for n in range(count - 1)]
    subjects.append("s.last")
    connection = await stream_of(nats_server, subjects)
    asked: list[str] = []
    request = connection.request

    async def note(subject: str, payload: bytes = b"", *, timeout_s: float = 5.0) -> Message:
        asked.append(subject)
        return await request(subject, payload, timeout_s=timeout_s)

    connection.request = note  # type: ignore[method-assign]
    try:
        read = [
            (seq, message.subject)
            async for messages in read_stream(connection, "S", subject, last_seq=count)
            for seq, message in messages
        ]
    finally:
        await connection.close()

    wanted = re.compile(subject.replace("*", "[^.]+").replace(">", ".+"))
    assert read == [it for it in enumerate(subjects, 1) if wanted.fullmatch(it[1])]
    created = [it.removeprefix("$JS.API.CONSUMER.CREATE.S.") for it in asked if "CREATE" in it]
    assert (created[-1].partition(".")[2] == ALL) is is_all_asked_for


async def test_a_replica_that_lags_does_not_pass_for_the_stream(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node that was away a consumer says that nothing is to come; the leader knows better."""
    monkeypatch.setattr(reader, "_LOOK_S", 0.01)
    create = consumer.create
    lagging = 3

    async def on_a_cluster(*args: Any, **config: Any) -> tuple[int, bool]:
        nonlocal lagging
        lagging -= 1
        return (0 if lagging >= 0 else (await create(*args, **config))[0]), True

    monkeypatch.setattr(consumer, "create", on_a_cluster)
    connection = await filled(nats_server, 101)
    try:
        read = await read_from_50(connection)
    finally:
        await connection.close()

    assert read == list(range(50, 101, 2))


async def test_replicas_that_all_lag_end_the_reading(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def on_a_cluster(*_: Any, **__: Any) -> tuple[int, bool]:
        return 0, True

    monkeypatch.setattr(reader, "_LOOK_S", 0.01)
    monkeypatch.setattr(reader, "_BEHIND_S", 0.1)
    monkeypatch.setattr(consumer, "create", on_a_cluster)
    connection = await filled(nats_server, 3)
    try:
        with pytest.raises(ConnectionLost, match="stream S: no replica that was asked has 1 yet"):
            async for _ in read_stream(connection, "S", "s.>", last_seq=3):
                pass
    finally:
        await connection.close()


async def test_a_subject_without_messages_is_read_as_nothing(nats_server: Server) -> None:
    connection = await filled(nats_server, 3)
    try:
        assert [m async for m in read_stream(connection, "S", "s.nothing", last_seq=3)] == []
    finally:
        await connection.close()


async def test_a_connection_that_is_lost_ends_the_wait_for_a_request() -> None:
    def check() -> None:
        raise ConnectionLost("the connection is gone")

    feed = _Feed("_INBOX.x", pending=2, check=check)
    feed.next_reply()

    with pytest.raises(ConnectionLost, match="the connection is gone"):
        await feed.some()


async def test_what_comes_is_handed_on_before_its_request_is_over() -> None:
    feed = _Feed("_INBOX.x", pending=2)
    reply = feed.next_reply()
    feed.take(Message("s.1", "$JS.ACK.S.c.1.1.1.1700000000000000000.1", b"", b"one"))

    assert [sequence(ack) for ack, *_ in await feed.some()] == [1]
    assert not feed.is_over

    feed.take(Message(reply, "", b"NATS/1.0 409 Batch Completed\r\n\r\n", b""))

    assert await feed.some() == []
    assert feed.is_over


async def test_a_late_status_of_the_request_before_does_not_end_this_one() -> None:
    feed = _Feed("_INBOX.x", pending=2)
    first = feed.next_reply()
    feed.take(Message("s.1", "$JS.ACK.S.c.1.1.1.1700000000000000000.1", b"", b"one"))
    feed.take(Message(first, "", b"NATS/1.0 409 Batch Completed\r\n\r\n", b""))
    await feed.some()

    feed.next_reply()
    feed.take(Message(first, "", b"NATS/1.0 408 Request Timeout\r\n\r\n", b""))
    feed.take(Message("s.1", "$JS.ACK.S.c.1.2.2.1700000000000000000.0", b"", b"two"))

    assert [sequence(ack) for ack, *_ in await feed.some()] == [2]
    assert feed.is_done(1 << 62)


async def test_a_request_that_brings_nothing_though_something_is_there_is_an_error() -> None:
    feed = _Feed("_INBOX.x", pending=2)
    reply = feed.next_reply()
    feed.take(Message(reply, "", b"NATS/1.0 409 Consumer Deleted\r\n\r\n", b""))

    with pytest.raises(ConnectionLost, match="status 409, 2 messages to come"):
        await feed.some()


@pytest.mark.parametrize("unheard", [1, 3])
async def test_a_consumer_that_the_node_has_not_heard_of_is_asked_again(
    nats_server: Server, unheard: int
) -> None:
    connection = await filled(nats_server, 5)
    write, asked = connection.write, 0

    def misdirect(data: bytes) -> None:
        nonlocal asked
        if b"CONSUMER.MSG.NEXT" in data:
            asked += 1
            if asked <= unheard:
                data = data.replace(b"CONSUMER.MSG.NEXT.S.", b"CONSUMER.MSG.NEXT.S.not-")
        write(data)

    connection.write = misdirect  # type: ignore[method-assign]
    try:
        read = [
            seq
            async for messages in read_stream(connection, "S", "s.>", last_seq=5)
            for seq, _ in messages
        ]
    finally:
        await connection.close()

    assert read == [1, 2, 3, 4, 5]
    assert asked == unheard + 1


async def test_a_consumer_that_nobody_ever_hears_of_is_given_up() -> None:
    feed = _Feed("_INBOX.x", pending=2)
    gone = b"NATS/1.0 503\r\n\r\n"
    feed.take(Message(feed.next_reply(), "", gone, b""))
    assert await feed.some() == []
    assert feed._alone_since is not None

    feed._alone_since -= 60
    feed.take(Message(feed.next_reply(), "", gone, b""))
    with pytest.raises(ConnectionLost, match="status 503, 2 messages to come"):
        await feed.some()
