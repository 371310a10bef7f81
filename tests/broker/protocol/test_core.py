from collections.abc import Sequence
from unittest.mock import Mock

import pytest
from hypothesis import given, strategies as st

from millstream_broker.errors import SlowConsumer
from millstream_broker.message import Instant, Message
from millstream_broker.protocol.core import RESERVED_REPLIES
from millstream_broker.protocol.parser import Limits
from millstream_broker.protocol.route import LINES_MAX, ROUTES_MAX

from .wire import MODERN, NOW, QUIET, Wire

PIECES = st.lists(
    st.sampled_from(
        [
            b"PUB a 1\r\nx\r\n",
            b"PUB a 1\r\ny\r\n",
            b"PUB b.c 3\r\n\r\n\r\r\n",
            b"PUB b.c r 2\r\nhi\r\n",
            b"PUB nobody nowhere 0\r\n\r\n",
            b"PUB nobody me 0\r\n\r\n",
            b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"SUB b.> 2\r\n",
            b"SUB a q 3\r\n",
            b"UNSUB 2\r\n",
            b"UNSUB 1 3\r\n",
            b"PING\r\n",
        ]
    ),
    max_size=30,
)


def run(chunks: list[bytes]) -> tuple[bytes, bytes]:
    """What a publisher and a plain subscriber get."""
    wire = Wire()
    watcher = wire.client(QUIET, b"SUB > 9\r\n")
    client = wire.client(MODERN, b"SUB a 1\r\nSUB me 4\r\n")
    for chunk in chunks:
        client.send(chunk)
    return client.read(), watcher.read()


@given(PIECES, st.data())
def test_any_split_of_the_bytes_gives_the_same_output(
    pieces: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert run(chunks) == run(pieces)
    assert run([whole[i : i + 1] for i in range(len(whole))]) == run(pieces)


STORED = st.lists(
    st.sampled_from(
        [
            b"PUB js.1 1\r\nx\r\n",
            b"PUB js.1 r 2\r\n\r\n\r\n",
            b"pub js.2\tme  1 \r\ny\r\n",
            b"PUB both me 1\r\nz\r\n",
            b"PUB other r 0\n\r\n",
            b"HPUB js.1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"HPUB js.1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"HPUB js.2 r2 0 2\r\nhi\r\n",
            b"HPUB js.2 \xff 12 12\r\nNATS/1.0\r\n\r\n\r\n",
            b"PUB js.1 $JS.ACK.x 1\r\nx\r\n",
            b"PUB nobody me 0\r\n\r\n",
            b"SUB js.2 7\r\n",
            b"UNSUB 7\r\n",
            b"PING\r\n",
        ]
    ),
    max_size=30,
)
WRONG = st.sampled_from(
    [
        b"",
        b"PUB js.1 r 2\r\nx\r\n\r\n",
        b"PUB js.1 r 1\r\nx\n\n",
        b"PUB js.1 r 0000000001\r\nx\r\n",
        b"PUB js.1 r s 1\r\nx\r\n",
        b"PUB js.1 r 101\r\n" + b"x" * 101 + b"\r\n",
        b"HPUB js.1 r 3 2\r\nhi\r\n",
        b"PUB js.1 " + b"r" * 60 + b" 1\r\nx\r\n",
    ]
)


def stored(chunks: list[bytes], connect: bytes) -> tuple[list[Message], bytes, bool, object]:
    """What subscribers inside the server get, in order, and what the publisher does."""
    wire = Wire(limits=Limits(max_control_line=50, max_payload=100))
    arrived: list[Message] = []

    def note(messages: Sequence[Message], now: Instant) -> None:
        arrived.extend(messages)

    for pattern in ("js.*", "both", "both", "other"):
        wire.account.subscribe(pattern, note)
    client = wire.client(connect, b"SUB me 4\r\n")
    for chunk in chunks:
        client.send(chunk)
    counts = wire.account.routes.counts
    counted = (counts.in_messages, counts.in_bytes, counts.out_messages, counts.out_bytes)
    return arrived, client.read(), client.is_ended, counted


@pytest.mark.parametrize("connect", [MODERN, QUIET], ids=["headers", "no headers"])
@given(STORED, WRONG, st.data())
def test_what_goes_to_a_stream_is_the_same_in_one_read_and_in_many(
    connect: bytes, pieces: list[bytes], wrong: bytes, data: st.DataObject
) -> None:
    pieces = [*pieces, wrong, b"PUB js.1 r 1\r\n!\r\n"]
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    one_by_one = stored(pieces, connect)

    assert stored([whole], connect) == one_by_one
    assert stored(chunks, connect) == one_by_one


@pytest.mark.parametrize("reserved", RESERVED_REPLIES)
def test_a_reserved_reply_amid_messages_to_a_stream_is_refused(reserved: bytes) -> None:
    line = b"PUB js.1 %b 1\r\nx\r\n"
    pieces = [line % reply for reply in (b"r", b"r", reserved + b"x", b"r")]

    one_by_one = stored(pieces, QUIET)

    assert len(one_by_one[0]) == 3
    assert stored([b"".join(pieces)], QUIET) == one_by_one


@pytest.mark.parametrize(
    "publish", [b"PUB js.%d r 2\r\nhi\r\n", b"HPUB js.%d 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"]
)
def test_what_goes_to_a_stream_is_taken_in_a_row(
    publish: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, one_by_one = Wire(), Mock()
    monkeypatch.setattr(wire.account, "dispatch", one_by_one)
    wire.account.subscribe("js.>", lambda messages, now: None)

    wire.client(MODERN, b"".join(publish % number for number in range(50)))

    one_by_one.assert_called_once()


def test_a_payload_that_ends_with_the_read_is_delivered_whole_or_not_at_all() -> None:
    wire = Wire()
    client = wire.client(QUIET, b"SUB a 1\r\n", b"PUB a 4\r\nwarm\r\nPUB a 4\r\nwarm\r\n" * 2)
    client.read()

    for cut in (b"", b"\r"):
        client.send(b"PUB a 4\r\nabcd" + cut)
        assert client.read() == b""
        client.send(b"\r\n".removeprefix(cut))
        assert client.read() == b"MSG a 1 4\r\nabcd\r\n"


def test_a_new_subscription_gets_the_next_message_of_a_line_already_known() -> None:
    wire = Wire()
    publisher = wire.client(QUIET, b"PUB a 1\r\nx\r\n" * 5)
    late = wire.client(QUIET, b"SUB a 7\r\n")

    publisher.send(b"PUB a 1\r\ny\r\n")

    assert late.read() == b"MSG a 7 1\r\ny\r\n"


def test_a_subscription_in_the_middle_of_a_read_counts_from_there_on() -> None:
    client = Wire().client(QUIET, b"PUB a 1\r\n1\r\n" * 4 + b"SUB a 1\r\nPUB a 1\r\n2\r\n")

    assert client.read() == b"MSG a 1 1\r\n2\r\n"


def test_an_ended_subscription_gets_nothing_of_a_line_already_known() -> None:
    wire = Wire()
    subscriber = wire.client(QUIET, b"SUB a 1\r\n")
    publisher = wire.client(QUIET, b"PUB a 1\r\nx\r\n" * 5)
    subscriber.read()

    subscriber.send(b"UNSUB 1\r\n")
    publisher.send(b"PUB a 1\r\ny\r\n")

    assert subscriber.read() == b""


def test_connections_with_output_are_on_the_shared_list_once() -> None:
    wire = Wire()
    one = wire.client(QUIET, b"SUB a 1\r\n")
    two = wire.client(QUIET, b"SUB a 1\r\n")

    wire.client(QUIET, b"PUB a 1\r\nx\r\n" * 10)

    assert wire.dirty == [one.core, two.core]


def test_the_messages_of_known_lines_are_counted() -> None:
    wire = Wire()
    wire.client(QUIET, b"SUB a 1\r\nSUB > 2\r\n" + b"PUB a 3\r\nabc\r\n" * 100)

    routes = wire.account.routes
    assert routes.lines
    routes.settle_counts()
    counts = routes.counts
    assert (counts.in_messages, counts.out_messages) == (100, 200)
    assert (counts.in_bytes, counts.out_bytes) == (300, 600)


def test_lines_are_remembered_from_the_second_time_their_subject_is_seen() -> None:
    wire = Wire()
    client = wire.client(QUIET, b"PUB once 0\r\n\r\n")
    assert not wire.account.routes.lines

    client.send(b"PUB once 0\r\n\r\n")
    assert set(wire.account.routes.lines) == {b"PUB once 0\r\n"}


def test_the_tables_stay_bounded() -> None:
    wire = Wire()
    client = wire.client(QUIET)
    for number in range(max(ROUTES_MAX, LINES_MAX) + 10):
        client.send(b"PUB s.%d 0\r\n\r\n" % number * 2)

    assert len(wire.account.routes.subjects) <= ROUTES_MAX
    assert len(wire.account.routes.lines) <= LINES_MAX


def test_too_much_output_in_one_round_makes_a_slow_consumer() -> None:
    wire = Wire()
    slow = wire.client(QUIET, b"SUB a 1\r\n")
    slow.core.max_pending = 100

    for _ in range(11):
        wire.account.publish("a", b"x" * 10)

    assert isinstance(slow.core.error, SlowConsumer)


def test_a_closed_connection_gets_and_says_nothing() -> None:
    wire = Wire()
    gone = wire.client(QUIET, b"SUB a 1\r\n")

    gone.core.close()
    wire.client(QUIET, b"PUB a 0\r\n\r\n")
    gone.send(b"PING\r\n")

    assert gone.read() == b""
    assert wire.account.subscription_count == 0


def test_a_large_payload_in_small_reads_is_joined_once() -> None:
    wire = Wire()
    payload = b"x" * 1_000_000
    client = wire.client(QUIET, b"SUB a 1\r\n")

    data = b"PUB a %d\r\n%b\r\n" % (len(payload), payload)
    for start in range(0, len(data), 1000):
        client.core.receive(data[start : start + 1000], NOW)

    assert client.read() == b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [
                    b"PUB a 1\r\nx\r\n",
                    b"SUB ",
                    b"UNSUB 1 ",
                    b"CONNECT ",
                    b"{",
                    b"}",
                    b'"a":',
                    b"\r\n",
                ]
            ),
        ),
        max_size=20,
    )
)
def test_garbage_is_answered_never_raised_and_disturbs_nobody(chunks: list[bytes]) -> None:
    wire = Wire()
    good = wire.client(QUIET, b"SUB quiet 1\r\n")
    bad = wire.client()

    for chunk in chunks:
        bad.send(chunk)
    if bad.is_ended:
        bad.core.close()
    good.send(b"PUB quiet 2\r\nok\r\n")

    assert good.read() == b"MSG quiet 1 2\r\nok\r\n"
