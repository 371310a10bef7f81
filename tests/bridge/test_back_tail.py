"""Reading a stream without an end: what is missing on the way is seen, not skipped."""

import asyncio
import json
from typing import Any

import pytest

from millstream_bridge.back.tail import Tail
from millstream_bridge.errors import ConnectionLost
from millstream_bridge.jetstream import consumer
from millstream_bridge.jetstream.connection import Connection, Message
from tests.bridge.test_stream_reader import stream_of
from tests.helpers.servers import Server


class Wire:
    """Stands for a connection: keeps what is written, hands in what a test says."""

    api_prefix = "$JS.API"
    max_payload = 1 << 20
    is_open = True
    lost_reason = denied = ""
    url = "nats://127.0.0.1:4222"
    check = Connection.check

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.hand_in: Any = None

    def new_inbox(self) -> str:
        return "_INBOX.test"

    def subscribe(self, subject: str, handler: Any, feed: Any) -> str:
        self.hand_in = handler
        return "2"

    def unsubscribe(self, sid: str) -> None:
        self.hand_in = None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    async def request(self, subject: str, payload: bytes = b"") -> Message:
        return Message(subject, "", b"", b'{"num_pending": 7}')

    def deliver(self, consumer_seq: int, pending: int = 5) -> None:
        """A message whose stream sequence is ten times its consumer's."""
        ack = f"$JS.ACK.S.c.1.{10 * consumer_seq}.{consumer_seq}.1700000000000000000.{pending}"
        self.hand_in(Message("flights.0.N", ack, b"", b"%d" % consumer_seq))

    def status(self, text: str, request: int = 1) -> None:
        block = f"NATS/1.0 {text}\r\n\r\n".encode()
        self.hand_in(Message(f"_INBOX.test.{request}", "", block, b""))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def tail(wire: Wire) -> Tail:
    return Tail(wire, "S", "c", 7)  # type: ignore[arg-type]


async def test_messages_come_in_order_with_time_and_lag(wire: Wire, tail: Tail) -> None:
    wire.deliver(1)
    wire.deliver(2, pending=3)

    found = await tail.next(0.1)

    assert [(one.seq, one.payload) for one in found] == [(10, b"1"), (20, b"2")]
    assert found[0].time_ns == 1_700_000_000_000_000_000
    assert (tail.lag, tail.is_idle) == (3, False)


async def test_what_comes_after_a_hole_is_not_handed_out(wire: Wire, tail: Tail) -> None:
    wire.deliver(1)
    wire.deliver(3)
    wire.deliver(4)

    found = await tail.next(0.1)

    assert [one.seq for one in found] == [10]
    with pytest.raises(ConnectionLost, match="its message 2 did not arrive"):
        await tail.next(0.1)


async def test_a_request_that_is_over_is_followed_by_another(wire: Wire, tail: Tail) -> None:
    await tail.next(0)
    wire.status("408 Request Timeout")
    await tail.next(0)

    assert [data.split(b" ")[2] for data in wire.written] == [b"_INBOX.test.1", b"_INBOX.test.2"]


@pytest.mark.parametrize("text", ["409 Consumer Deleted", "503"])
async def test_a_consumer_that_is_gone_ends_the_session(wire: Wire, tail: Tail, text: str) -> None:
    wire.deliver(1)
    await tail.next(0)
    wire.status(text)

    with pytest.raises(ConnectionLost, match=text):
        await tail.next(0)


async def test_a_consumer_that_the_node_has_not_heard_of_is_asked_again(
    wire: Wire, tail: Tail
) -> None:
    await tail.next(0)
    wire.status("503")
    await tail.next(0)
    assert len(wire.written) == 2

    tail._made_at -= 60
    wire.status("503", request=2)
    with pytest.raises(ConnectionLost, match="503"):
        await tail.next(0)


async def test_what_was_removed_before_it_came_is_not_waited_for(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_bridge.back.tail._EXPIRES_S", 0.2)
    connection = await stream_of(nats_server, ["s.0", "s.1", "s.2"])
    try:
        tail = await Tail.open(connection, "S", "s.*", 1, name="way-back")
        before = tail.lag
        await connection.request("$JS.API.STREAM.PURGE.S")
        async with asyncio.timeout(30):
            while not tail.is_idle:
                assert await tail.next(1) == []
    finally:
        await connection.close()

    assert before == 3


async def test_a_request_without_any_answer_ends_the_session(
    wire: Wire, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says of every request that it is over; who does not say so is gone."""
    monkeypatch.setattr("millstream_bridge.back.tail._SILENCE_S", 0.0)

    with pytest.raises(ConnectionLost, match="no answer for"):
        await tail.next(0.01)


@pytest.mark.parametrize(
    ("subject", "asked_for"), [("s.*.odd", consumer.ALL), ("s.*", "s.*"), ("s.0.odd", "s.0.odd")]
)
async def test_where_most_is_wanted_all_is_asked_for_and_the_rest_dropped(
    nats_server: Server, monkeypatch: pytest.MonkeyPatch, subject: str, asked_for: str
) -> None:
    monkeypatch.setattr(consumer, "FEW", 10)
    kinds = ["s.0.odd", "s.1.odd", "s.2.odd", "s.other"]
    subjects = [kinds[n % 4] for n in range(4_000)]
    wanted = {"s.*.odd": kinds[:3], "s.*": kinds[3:], "s.0.odd": kinds[:1]}[subject]
    connection = await stream_of(nats_server, subjects)
    try:
        tail = await Tail.open(connection, "S", subject, 11, name="way-back")
        found = []
        async with asyncio.timeout(30):
            while not tail.is_idle:
                found += await tail.next(1)
        info = await connection.request("$JS.API.CONSUMER.INFO.S.way-back")
        tail.close()
    finally:
        await connection.close()

    numbered = list(enumerate(subjects, 1))[10:]
    assert [(one.seq, one.subject) for one in found] == [it for it in numbered if it[1] in wanted]
    assert json.loads(info.payload)["config"]["filter_subject"] == asked_for
