"""Transcripts: what one client gets for what it sends, as nats-server 2.15.1 answers."""

import pytest

from millstream_broker.auth.credentials import Credentials
from millstream_broker.errors import MalformedOperation
from millstream_broker.protocol.session import ConnectOptions

from .wire import MODERN, QUIET, SECOND_INFO, Wire, transcript

UNKNOWN = b"-ERR 'Unknown Protocol Operation'\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        # Before CONNECT: verbose and pedantic.
        (b"PING\r\n", b"PONG\r\n"),
        (
            b"SUB FRONT.DOOR 1\r\nPUB FRONT.DOOR 11\r\nKnock Knock\r\n",
            b"+OK\r\n+OK\r\nMSG FRONT.DOOR 1 11\r\nKnock Knock\r\n",
        ),
        (b"PUB FRONT.DOOR 11\r\nKnock Knock\r\n", b"+OK\r\n"),
        (b"PUB a.* 1\r\nx\r\n", b"-ERR 'Invalid Publish Subject'\r\n+OK\r\n"),
        (
            b"SUB a.* 1\r\nPUB a.* 1\r\nx\r\n",
            b"+OK\r\n-ERR 'Invalid Publish Subject'\r\n+OK\r\nMSG a.* 1 1\r\nx\r\n",
        ),
        (b"SUB a..b 1\r\n", b"-ERR 'Invalid Subject'\r\n"),
        (b"SUB a 1\r\nUNSUB 99\r\nUNSUB 1\r\nPUB a 0\r\n\r\n", b"+OK\r\n" * 4),
        (
            b"SUB a _sys_ 1\r\n",
            b'-ERR \'Permissions Violation for Subscription to "a" using queue "_sys_"\'\r\n',
        ),
        (b"CONNECT {}\r\nCONNECT {}\r\nCONNECT null\r\n", b"+OK\r\n" * 3),
        (b"+OK\r\nINFO {}\r\nPONG\r\nPING\r\n", b"PONG\r\n"),
        # After CONNECT: quiet.
        (QUIET + b"SUB a 1\r\nPUB a 2\r\nhi\r\n", b"MSG a 1 2\r\nhi\r\n"),
        (QUIET + b"SUB a 1\r\nPUB a r 2\r\nhi\r\n", b"MSG a 1 r 2\r\nhi\r\n"),
        (QUIET + b"SUB a 1\r\nSUB b 1\r\nPUB b 0\r\n\r\nPUB a 0\r\n\r\n", b"MSG a 1 0\r\n\r\n"),
        (QUIET + b"SUB a 1\r\nSUB > 2\r\nPUB a 0\r\n\r\n", b"MSG a 2 0\r\n\r\nMSG a 1 0\r\n\r\n"),
        (QUIET + b"SUB > 1\r\nPUB a..b 0\r\n\r\n", b""),
        (QUIET + b"PING\r\nPING\r\n", b"PONG\r\nPONG\r\n"),
        (MODERN + b"PING\r\nPING\r\n", b"PONG\r\n" + SECOND_INFO + b"PONG\r\n"),
        (
            MODERN + b"SUB a 1\r\nHPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"HMSG a 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        ),
        (MODERN + b"SUB a 1\r\nHPUB a 0 2\r\nhi\r\n", b"MSG a 1 2\r\nhi\r\n"),
        (
            MODERN + b"PUB a $JS.ACK.x 0\r\n\r\n",
            b"-ERR 'Permissions Violation for Publish with Reply of \"$JS.ACK.x\"'\r\n",
        ),
        (
            MODERN + b"PUB $NRG.x 0\r\n\r\nPUB $SYS.x 0\r\n\r\n",
            b"-ERR 'Permissions Violation for Publish to \"$NRG.x\"'\r\n",
        ),
        (
            b"PUB a _R_.x 0\r\n\r\nPUB _GR_.x 0\r\n\r\n",
            b"".join(
                [
                    b"-ERR 'Permissions Violation for Publish with Reply of \"_R_.x\"'\r\n",
                    b"-ERR 'Permissions Violation for Publish to \"_GR_.x\"'\r\n",
                ]
            ),
        ),
    ],
)
def test_the_server_answers(sent: bytes, answer: bytes) -> None:
    assert transcript(sent) == (answer, False)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"X", UNKNOWN),
        (b"\r\n", UNKNOWN),
        (b"PUB a 2\r\nhiXX", UNKNOWN),
        (QUIET + b"PUB a 2\r\nhi\r\nPUB a 2\r\nhi\r\nPUB a 2\r\nhi\r\nPUB a 2\r\nhiXX", UNKNOWN),
        (b"PUB \r\n", b""),
        (b"PUB a -1\r\n", b""),
        (b"SUB a\r\n", b""),
        (b"HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n", b""),
        (MODERN + b"HPUB a 13 12\r\n", b""),
        (b"-ERR 'x'\r\n", b""),
        (b"PUB a 1048577\r\n", b"-ERR 'Maximum Payload Violation'\r\n"),
        (b"SUB " + b"x" * 5000, b"-ERR 'maximum control line exceeded'\r\n"),
        (b'CONNECT {"name":"' + b"x" * 5000, b"-ERR 'maximum control line exceeded'\r\n"),
        (b"CONNECT {bad\r\n", b""),
        (b"CONNECT []\r\n", b""),
        (b"CONNECT\r\n", b""),
        (b'CONNECT {"verbose":"x"}\r\n', b""),
        (b'CONNECT {"protocol":2}\r\n', b"-ERR 'invalid client protocol'\r\n"),
        (
            b'CONNECT {"no_responders":true}\r\n',
            b"-ERR 'no responders requires headers support'\r\n",
        ),
        (b'CONNECT {"account":"X"}\r\n', b"-ERR 'Authorization Violation'\r\n"),
        (b'CONNECT {"new_account":true}\r\n', b"-ERR 'Authorization Violation'\r\n"),
    ],
)
def test_the_server_answers_and_closes(sent: bytes, answer: bytes) -> None:
    assert transcript(sent, b"PING\r\n") == (answer, True)


def test_a_mistake_of_one_client_does_not_touch_another() -> None:
    wire = Wire()
    good = wire.client(QUIET, b"SUB a 1\r\n")
    wire.client(b"SUB a 1\r\nGARBAGE\r\n")

    wire.client(QUIET, b"PUB a 2\r\nhi\r\n")

    assert good.read() == b"MSG a 1 2\r\nhi\r\n"
    assert not good.is_ended


def test_the_limit_of_subscriptions_is_answered_and_the_client_stays() -> None:
    sent = QUIET + b"SUB a 1\r\nSUB b 2\r\nSUB c 3\r\nPING\r\n"

    answer = transcript(sent, wire=Wire(max_subscriptions=2))

    assert answer == (b"-ERR 'maximum subscriptions exceeded'\r\nPONG\r\n", False)


PROTECTED = [
    (Credentials(user="u", password="p"), b'CONNECT {"user":"u","pass":"p"}\r\n', True),
    (Credentials(user="u", password="p"), b'CONNECT {"user":"u","pass":"x"}\r\n', False),
    (Credentials(user="u", password="p"), b'CONNECT {"user":"x","pass":"p"}\r\n', False),
    (Credentials(user="u", password="p"), b"CONNECT {}\r\n", False),
    (Credentials(user="u", password="p"), b"PING\r\n", False),
    (Credentials(user="u"), b'CONNECT {"user":"u"}\r\n', True),
    (Credentials(token="t"), b'CONNECT {"auth_token":"t"}\r\n', True),
    (Credentials(token="t"), b'CONNECT {"auth_token":"tt"}\r\n', False),
    (Credentials(token="t"), b"SUB a 1\r\n", False),
    (Credentials(token="t"), b"PUB a 2\r\nhi\r\n", False),
    (Credentials(token="t"), b"P", False),
]


@pytest.mark.parametrize(("credentials", "sent", "is_in"), PROTECTED)
def test_credentials_decide_who_comes_in(
    credentials: Credentials, sent: bytes, is_in: bool
) -> None:
    answer = transcript(sent, wire=Wire(credentials=credentials))

    assert answer == (
        (b"+OK\r\n", False) if is_in else (b"-ERR 'Authorization Violation'\r\n", True)
    )


def test_connect_options_have_the_servers_defaults() -> None:
    options = ConnectOptions()

    assert options.verbose
    assert options.pedantic
    assert options.echo
    assert not options.headers
    assert not options.no_responders


def test_null_and_unknown_keys_of_connect_are_passed_over() -> None:
    assert ConnectOptions().updated(b'{"name":null,"jwt":5}') == ConnectOptions()


def test_keys_of_connect_ignore_case() -> None:
    assert ConnectOptions().updated(b'{"Verbose":false,"PASS":"p"}') == ConnectOptions(
        verbose=False, password="p"
    )


def test_a_second_connect_keeps_what_it_does_not_name() -> None:
    assert transcript(MODERN + b"CONNECT {}\r\nSUB a 1\r\nPING\r\n") == (
        b"PONG\r\n" + SECOND_INFO,
        False,
    )


@pytest.mark.parametrize("raw", [b"", b"1", b'"x"', b'{"protocol":true}', b"[" * 100_000])
def test_what_is_no_options_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedOperation):
        ConnectOptions().updated(raw)
