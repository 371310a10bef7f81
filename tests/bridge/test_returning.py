"""What one stored message becomes on the way back, and why it stays where it is."""

import pytest

from millstream_bridge import Record
from millstream_bridge.back.returning import Delivered, NotReturnable, Returning
from millstream_bridge.model import TimestampType
from millstream_bridge.records.mapping import Mapping
from millstream_bridge.records.origin import Return, marks
from tests.bridge.moves import a_route

ROUTE = a_route("flights", shared=True)
MAPPING = Mapping(ROUTE)
RETURNING = Returning(MAPPING, 3, everything=False)
TIME_NS = 1_357_034_400_000_000_000


def a_message(
    subject: str = "flights.1.N1", payload: bytes = b"v", time_ns: int = TIME_NS, **headers: str
) -> Delivered:
    """Sequence 7; in names of headers ``_`` stands for a dash."""
    lines = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    block = f"NATS/1.0\r\n{lines}\r\n".encode() if lines else b""
    return Delivered(7, time_ns, subject, block, payload)


def returned(message: Delivered) -> Record:
    record = RETURNING.record(message)
    assert record is not None
    return record


def test_a_native_message_becomes_a_record_of_its_subject_behind_the_marks() -> None:
    record = returned(a_message(n="1"))

    own = marks(ROUTE.name, Return("FLIGHTS", 7))
    wanted = Record(
        1, 7, TIME_NS // 1_000_000, TimestampType.CREATE, b"N1", b"v", (*own, ("n", b"1"))
    )
    assert record == wanted


def test_only_the_message_id_of_the_servers_headers_goes_along() -> None:
    record = returned(a_message(Nats_Msg_Id="m", Nats_TTL="5s", Millstream_Key="eA==", b="2"))

    assert record.headers[2:] == (("Nats-Msg-Id", b"m"), ("b", b"2"))


@pytest.mark.parametrize(
    ("operation", "payload", "value"),
    [
        ("DEL", b"", None),
        ("PURGE", b"", None),
        ("DEL", b"v", b"v"),
        ("PUT", b"", b""),
    ],
)
def test_what_a_bucket_deletes_has_no_value(
    operation: str, payload: bytes, value: bytes | None
) -> None:
    assert returned(a_message(payload=payload, KV_Operation=operation)).value == value


@pytest.mark.parametrize(
    "message",
    [
        a_message(Millstream_Source="flights 1 2 1357034400000 c"),
        a_message(Millstream_Source="flights 1 2 1357034400000 c r"),
        a_message("flights._checkpoint.1"),
        a_message("flights._poison.1.4"),
        a_message("flights._chunk.1.abc.1"),
    ],
)
def test_what_is_in_kafka_already_or_belongs_to_the_bridge_stays(message: Delivered) -> None:
    assert RETURNING.record(message) is None


def test_a_record_of_another_topic_is_native_here() -> None:
    assert returned(a_message(Millstream_Source="other 1 2 1357034400000 c")).value == b"v"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (a_message("flights.3.N1"), "partition 3, and the topic has 3 partitions"),
        (a_message("flights.x.N1"), "has no partition where"),
        (a_message("flights.01.N1"), "has no partition where"),
        (a_message("flights.1"), "no token for the key"),
        (a_message(time_ns=999_999), "timestamp is 0"),
        (a_message(Millstream_Source="flights 1"), "Millstream-Source"),
    ],
)
def test_what_cannot_go_back_says_why(message: Delivered, reason: str) -> None:
    with pytest.raises(NotReturnable, match=reason) as error:
        RETURNING.record(message)

    assert error.value.seq == 7
