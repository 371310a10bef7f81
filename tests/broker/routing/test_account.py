from collections import Counter
from collections.abc import Sequence

import pytest

from millstream_broker.errors import SlowConsumer
from millstream_broker.message import Instant, Message
from tests.broker.protocol.wire import MODERN, NOW, QUIET, Wire


class Recorder:
    """A subscriber inside the server."""

    def __init__(self) -> None:
        self.runs: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message], now: Instant) -> None:
        self.runs.append(list(messages))


def test_one_member_of_a_queue_group_gets_each_message_and_plain_ones_all() -> None:
    turns = iter([0, 1, 2, 1])
    wire = Wire(random=lambda below: next(turns))
    members = [wire.client(QUIET, b"SUB a q 1\r\n") for _ in range(3)]
    plain = wire.client(QUIET, b"SUB a 1\r\n")

    wire.client(QUIET, b"PUB a 0\r\n\r\n" * 4)

    assert [m.read().count(b"MSG") for m in members] == [1, 2, 1]
    assert plain.read().count(b"MSG") == 4


def test_every_queue_group_gets_the_message_once() -> None:
    wire = Wire()
    client = wire.client(QUIET, b"SUB a q1 1\r\nSUB a q2 2\r\nSUB * q1 3\r\nPUB a 0\r\n\r\n")

    sids = Counter(line.split()[2] for line in client.read().split(b"\r\n") if line)

    assert sum(sids.values()) == 2
    assert sids[b"2"] == 1


def test_unsub_max_ends_after_that_many_since_sub() -> None:
    wire = Wire()
    client = wire.client(QUIET, b"SUB a 1\r\nPUB a 1\r\n0\r\nUNSUB 1 3\r\n")

    client.send(b"PUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\nPUB a 1\r\n4\r\n")

    assert client.read() == b"".join(b"MSG a 1 1\r\n%d\r\n" % n for n in range(3))
    assert wire.account.subscription_count == 0


def test_unsub_max_counts_what_the_fast_path_delivered() -> None:
    client = Wire().client(QUIET, b"SUB a 1\r\n" + b"PUB a 1\r\nx\r\n" * 10)
    client.read()

    client.send(b"UNSUB 1 12\r\n" + b"PUB a 1\r\ny\r\n" * 5)

    assert client.read() == b"MSG a 1 1\r\ny\r\n" * 2


def test_unsub_max_that_is_reached_ends_now() -> None:
    client = Wire().client(QUIET, b"SUB a 1\r\nPUB a 0\r\n\r\nUNSUB 1 1\r\nPUB a 0\r\n\r\n")

    assert client.read() == b"MSG a 1 0\r\n\r\n"


def test_a_sid_is_free_again_once_its_subscription_ended() -> None:
    client = Wire().client(QUIET, b"SUB a 1\r\nUNSUB 1\r\nSUB b 1\r\nPUB b 0\r\n\r\n")

    assert client.read() == b"MSG b 1 0\r\n\r\n"


def test_without_echo_a_client_does_not_get_its_own_messages() -> None:
    wire = Wire()
    other = wire.client(QUIET, b"SUB a 1\r\n")
    silent = wire.client(
        b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\nSUB a 1\r\nSUB a q 2\r\n'
    )

    silent.send(b"PUB a 0\r\n\r\n" * 3)

    assert silent.read() == b""
    assert other.read().count(b"MSG") == 3


def test_a_queue_group_passes_over_the_publisher_without_echo() -> None:
    wire = Wire(random=lambda below: 0)
    silent = wire.client(
        b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\nSUB a q 1\r\n'
    )
    other = wire.client(QUIET, b"SUB a q 1\r\n")

    silent.send(b"PUB a 0\r\n\r\n")

    assert other.read() == b"MSG a 1 0\r\n\r\n"


def test_headers_are_stripped_for_who_does_not_accept_them() -> None:
    wire = Wire()
    old = wire.client(QUIET, b"SUB a 1\r\n")

    wire.client(MODERN, b"HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")

    assert old.read() == b"MSG a 1 r 2\r\nhi\r\n"


def test_nobody_there_is_answered_on_the_requesters_own_subscription() -> None:
    client = Wire().client(MODERN, b"SUB rep.* 7\r\nPUB nobody rep.x 0\r\n\r\n")

    expected = b"HMSG rep.x 7 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\n"
    assert client.read() == expected


def test_nobody_there_is_not_answered_to_others_or_queue_groups() -> None:
    wire = Wire()
    other = wire.client(MODERN, b"SUB rep 7\r\n")
    client = wire.client(MODERN, b"SUB rep q 7\r\nPUB nobody rep 0\r\n\r\n")

    assert client.read() == b""
    assert other.read() == b""


def test_without_echo_nobody_there_is_answered_all_the_same() -> None:
    client = Wire().client(
        b'CONNECT {"verbose":false,"pedantic":false,"echo":false,"headers":true,'
        b'"no_responders":true}\r\n'
        b"SUB a 1\r\nSUB r 2\r\nPUB a r 0\r\n\r\n"
    )

    assert client.read().startswith(b"HMSG r 2 33 33\r\nNATS/1.0 503\r\n")


def test_internal_subscribers_get_the_run_of_one_read_as_one_batch() -> None:
    wire, sink = Wire(), Recorder()
    wire.account.subscribe("js.>", sink)

    wire.client(MODERN, b"PUB js.1 r 1\r\na\r\n" * 3 + b"HPUB js.2 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")

    assert sink.runs == [
        [Message("js.1", "r", None, b"a")] * 3 + [Message("js.2", None, b"NATS/1.0\r\n\r\n", b"hi")]
    ]


def test_internal_subscribers_are_called_in_the_order_of_the_messages() -> None:
    wire = Wire()
    order: list[str] = []

    def note(messages: Sequence[Message], now: Instant) -> None:
        order.extend(message.subject for message in messages)

    wire.account.subscribe("one", note)
    wire.account.subscribe("two", note)
    wire.client(QUIET, b"PUB one 0\r\n\r\nPUB two 0\r\n\r\nPUB two 0\r\n\r\nPUB one 0\r\n\r\n")

    assert order == ["one", "two", "two", "one"]


def test_a_ping_is_answered_after_the_internal_subscribers_had_their_turn() -> None:
    wire = Wire()
    wire.account.subscribe("js", lambda messages, now: _answer(wire, messages))
    client = wire.client(QUIET, b"SUB r 1\r\nPUB js r 0\r\n\r\nPING\r\n")

    assert client.read() == b"MSG r 1 2\r\nok\r\nPONG\r\n"


def _answer(wire: Wire, messages: Sequence[Message]) -> None:
    for message in messages:
        assert message.reply is not None
        wire.account.publish(message.reply, b"ok")


def test_what_internal_subscribers_publish_to_each_other_waits_its_turn() -> None:
    wire = Wire()
    order: list[str] = []

    def first(messages: Sequence[Message], now: Instant) -> None:
        assert wire.account.publish("second", b"") == 1
        order.append("first done")

    wire.account.subscribe("first", first)
    wire.account.subscribe("second", lambda messages, now: order.append("second"))
    wire.client(QUIET, b"PUB first 0\r\n\r\n")

    assert order == ["first done", "second"]


def test_the_bus_delivers_under_another_subject_with_headers_and_reply() -> None:
    wire = Wire()
    modern = wire.client(MODERN, b"SUB inbox 5\r\n")
    old = wire.client(QUIET, b"SUB inbox 6\r\n")

    reached = wire.account.publish(
        "inbox", b"hi", reply="ack", headers=b"NATS/1.0\r\n\r\n", deliver_as="orders.1"
    )

    assert reached == 2
    assert modern.read() == b"HMSG orders.1 5 ack 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    assert old.read() == b"MSG orders.1 6 ack 2\r\nhi\r\n"


RUN = [
    Message("orders.1", "ack.1", None, b"a"),
    Message("orders.2", None, b"NATS/1.0\r\n\r\n", b""),
    Message("orders.\udcff", "ack.3", b"NATS/1.0\r\nA: b\r\n\r\n", b"cd"),
]


@pytest.mark.parametrize(
    "listeners",
    [
        [b"SUB in 1\r\n"],
        [b"SUB in 1\r\nUNSUB 1 2\r\n"],
        [b"SUB in 1\r\n", b"SUB * 2\r\n"],
        [b"SUB in q 1\r\n"],
        [b"PING\r\n"],
    ],
    ids=["one", "one for two", "two", "a queue group", "nobody"],
)
@pytest.mark.parametrize("connect", [MODERN, QUIET], ids=["headers", "no headers"])
@pytest.mark.parametrize("has_sink", [False, True])
def test_a_run_arrives_as_its_messages_one_by_one(
    listeners: list[bytes], connect: bytes, has_sink: bool
) -> None:
    def arrivals(*, at_once: bool) -> tuple[object, ...]:
        wire, sink = Wire(), Recorder()
        account = wire.account
        clients = [wire.client(connect, sent) for sent in listeners]
        if has_sink:
            account.subscribe("in", sink)
        if at_once:
            account.publish_all("in", [b"1", b"", b"345"])
            account.deliver_all("in", RUN)
        else:
            for payload in (b"1", b"", b"345"):
                account.publish("in", payload)
            for subject, reply, headers, payload in RUN:
                account.publish("in", payload, reply=reply, headers=headers, deliver_as=subject)
        account.settle(NOW)
        counts = account.routes.counts
        counted = (counts.out_messages, counts.out_bytes, account.subscription_count)
        return [client.read() for client in clients], sink.runs, counted

    assert arrivals(at_once=True) == arrivals(at_once=False)


@pytest.mark.parametrize(
    ("sent", "takes_runs"),
    [
        (b"SUB in 1\r\n", True),
        (b"SUB in 1\r\nUNSUB 1 2\r\n", False),
        (b"SUB in 1\r\nSUB * 2\r\n", False),
        (b"SUB in q 1\r\n", False),
        (b"PING\r\n", False),
    ],
    ids=["one", "one for two", "two", "a queue group", "nobody"],
)
def test_a_run_has_one_taker_that_gets_all_of_it(sent: bytes, *, takes_runs: bool) -> None:
    wire = Wire()
    wire.client(MODERN, sent)

    assert wire.account.takes_runs("in") is takes_runs


def test_too_much_in_one_run_makes_a_slow_consumer() -> None:
    wire = Wire()
    slow = wire.client(QUIET, b"SUB a 1\r\n")
    slow.core.max_pending = 100

    wire.account.publish_all("a", [b"x" * 10] * 11)

    assert isinstance(slow.core.error, SlowConsumer)


def test_interest_is_there_while_somebody_is_subscribed() -> None:
    wire = Wire()
    client = wire.client(QUIET, b"SUB a.* q 1\r\n")

    assert wire.account.has_interest("a.b")
    assert wire.account.has_interest("a.b", "q")
    assert not wire.account.has_interest("a.b", "other")

    client.send(b"UNSUB 1\r\n")
    assert not wire.account.has_interest("a.b")


def test_an_internal_subscription_ends_when_asked_to() -> None:
    wire, sink = Wire(), Recorder()
    unsubscribe = wire.account.subscribe("a", sink)

    unsubscribe()
    unsubscribe()

    assert wire.account.publish("a") == 0
    assert not wire.account.has_interest("a")
