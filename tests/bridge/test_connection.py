"""The connection's read side: the same from any chunks; what is no acknowledgement is told."""

import asyncio
import json
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.errors import ConnectionLost
from millstream_bridge.jetstream import connection as connection_module
from millstream_bridge.jetstream.connection import AckSink, Connection, Message
from tests.bridge.moves import until
from tests.helpers.servers import Server


class Wire:
    """A transport that only keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def abort(self) -> None:
        pass


INFO = b'INFO {"max_payload":1048576,"headers":true}\r\n'


class Session:
    """A connection that has shaken hands, and what its session heard."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.connection = Connection("nats://test")
        self.connection.connection_made(cast(asyncio.Transport, self.wire))
        self.connection.data_received(INFO)
        self.connection.is_open = True
        self.acks: list[tuple[int, int]] = []
        self.others: list[Message] = []
        self.reply = self.connection.new_ack_subject(
            AckSink(lambda count, seq: self.acks.append((count, seq)), self.others.append)
        )

    def message(self, payload: bytes) -> bytes:
        return b"MSG %b 1 %d\r\n%b\r\n" % (self.reply.encode(), len(payload), payload)

    def ack(self, seq: int) -> bytes:
        return self.message(b'{"stream":"FLIGHTS","seq":%d}' % seq)


REFUSAL = (
    b'{"error":{"code":400,"err_code":10070,"description":"wrong last msg ID: s-2"},'
    b'"stream":"FLIGHTS","seq":0}'
)


@given(st.lists(st.sampled_from(["ack", "ping", "refusal", "late"]), max_size=12), st.data())
def test_any_chunks_give_the_same_acknowledgements(kinds: list[str], data: Any) -> None:
    session = Session()
    stream = b""
    acks = 0
    for kind in kinds:
        if kind == "ack":
            acks += 1
            stream += session.ack(acks)
        elif kind == "refusal":
            stream += session.message(REFUSAL)
        elif kind == "late":
            stream += b"MSG _INBOX.old.1 1 2\r\n{}\r\n"
        else:
            stream += b"PING\r\n"
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        session.connection.data_received(stream[start:end])

    assert sum(count for count, _ in session.acks) == acks
    assert [seq for _, seq in session.acks] == sorted(seq for _, seq in session.acks)
    assert session.acks[-1:] == [] or session.acks[-1][1] == acks
    assert len(session.others) == kinds.count("refusal")
    assert session.wire.written.count(b"PONG\r\n") == kinds.count("ping")


def test_a_run_of_acknowledgements_is_one_call() -> None:
    session = Session()

    session.connection.data_received(b"".join(session.ack(seq) for seq in range(5, 1_005)))

    assert session.acks == [(1_000, 1_004)]


def test_sessions_side_by_side_each_hear_their_own() -> None:
    session = Session()
    heard: list[tuple[int, int]] = []
    other = session.connection.new_ack_subject(
        AckSink(lambda count, seq: heard.append((count, seq)), session.others.append)
    )
    theirs = b"".join(
        b'MSG %b 1 25\r\n{"stream":"OTHER","seq":%d}\r\n' % (other.encode(), seq)
        for seq in (71, 72)
    )

    session.connection.data_received(session.ack(1) + theirs + session.ack(2) + session.ack(3))

    assert session.acks == [(1, 1), (2, 3)]
    assert heard == [(2, 72)]


def test_an_acknowledgement_with_a_domain_or_a_space_counts() -> None:
    session = Session()

    session.connection.data_received(
        session.message(b'{"stream":"F", "domain":"hub", "seq":1}')
        + session.message(b'{"stream": "F","seq": 2}')
    )

    assert sum(count for count, _ in session.acks) == 2


def test_a_duplicate_is_no_good_acknowledgement() -> None:
    session = Session()

    session.connection.data_received(
        session.message(b'{"stream":"F","seq":2,"duplicate": true}') + session.ack(3)
    )

    assert session.acks == [(1, 3)]
    assert len(session.others) == 1


def test_answers_to_the_session_before_are_dropped() -> None:
    session = Session()
    late = session.ack(9) + session.message(REFUSAL)
    session.connection.drop_ack_subject(session.reply)
    session.connection.new_ack_subject(AckSink(lambda *_: None, session.others.append))

    session.connection.data_received(late)

    assert session.acks == []
    assert session.others == []


def test_a_lost_connection_is_told_to_the_session() -> None:
    session = Session()

    session.connection.connection_lost(None)

    assert len(session.others) == 1
    assert not session.connection.is_open


async def test_a_server_that_takes_nothing_any_more_is_a_lost_connection() -> None:
    session = Session()
    session.connection.pause_writing()

    with pytest.raises(ConnectionLost, match="took nothing"):
        await session.connection.writable(timeout_s=0.01)


async def test_giving_up_while_shaking_hands_closes_the_socket() -> None:
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    silent = await asyncio.start_server(lambda *ends: accepted.put_nowait(ends), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]

    async with silent, asyncio.timeout(10):
        opening = asyncio.create_task(Connection.open(f"nats://127.0.0.1:{port}", name="test"))
        peer, writer = await accepted.get()
        opening.cancel()
        await asyncio.wait({opening})
        with suppress(ConnectionResetError):
            assert await peer.read() == b""
        writer.close()

    assert opening.cancelled()


class Early:
    """A message to a stream that is not there yet, and how often it was sent."""

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, reply: str) -> bytes:
        self.sent += 1
        return b"PUB early %b 1\r\nx\r\n" % reply.encode()


async def test_what_is_published_before_a_node_knows_the_stream_is_sent_again(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "EARLY_S", 60.0)
    connection = await Connection.open(nats_server.url, name="test")
    early = Early()
    try:
        async with asyncio.timeout(60):
            publishing = asyncio.create_task(connection.publish_and_wait(early))
            await until(lambda: early.sent > 1 or publishing.done())
            body = {"name": "EARLY", "subjects": ["early"]}
            await connection.request("$JS.API.STREAM.CREATE.EARLY", json.dumps(body).encode())
            answer = await publishing
    finally:
        await connection.close()

    assert json.loads(answer.payload)["seq"] == 1


async def test_what_nobody_ever_takes_is_given_up(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "EARLY_S", 0.0)
    connection = await Connection.open(nats_server.url, name="test")
    try:
        async with asyncio.timeout(60):
            answer = await connection.publish_and_wait(Early())
    finally:
        await connection.close()

    assert answer.status == 503
