"""Records to subjects and messages, and back."""

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.errors import ConfigurationError
from millstream_bridge.model import Record, Route, TimestampType
from millstream_bridge.records.frames import Frames
from millstream_bridge.records.headers import parse_block
from millstream_bridge.records.mapping import Mapping
from millstream_coordinator.partitioning.pattern import covers
from tests.bridge.test_headers import kafka_headers

keys = st.one_of(st.none(), st.binary(max_size=200), st.sampled_from([b"N123", b"%null", b"a.b"]))

records = st.builds(
    Record,
    st.integers(0, 200),
    st.integers(0, 2**60),
    st.integers(-1, 2**45),
    st.sampled_from(TimestampType),
    keys,
    st.one_of(st.none(), st.binary(max_size=50)),
    kafka_headers.map(tuple),
)


def route(subject: str = "flights.{partition}.{key}", topic: str = "flights") -> Route:
    return Route(topic=topic, stream="FLIGHTS", subject=subject)


def through_the_wire(mapping: Mapping, record: Record) -> tuple[str, Record]:
    frame = Frames(mapping, 1 << 20).plain(record, "Nats-Msg-Id: s-1\r\n", "_INBOX.1")
    line, _, rest = frame.partition(b"\r\n")
    _, subject, _, header_size, size = line.split()
    block, payload = rest[: int(header_size)], rest[int(header_size) : int(size)]
    headers = parse_block(block)[1]
    return subject.decode(), mapping.record(subject.decode(), headers, payload)


@given(records, st.sampled_from(["flights.{partition}.{key}", "in.{topic}.{partition}"]))
def test_any_record_comes_back_as_it_was(record: Record, subject: str) -> None:
    assert through_the_wire(Mapping(route(subject)), record)[1] == record


@given(records, st.sampled_from(["none", "%null", "N123"]))
def test_a_chosen_null_token_loses_nothing(record: Record, token: str) -> None:
    chosen = Route(topic="t", stream="T", subject="t.{partition}.{key}", null_token=token)

    assert through_the_wire(Mapping(chosen), record)[1] == record


@given(records)
def test_a_subject_is_inside_its_partition_and_has_no_wildcard(record: Record) -> None:
    mapping = Mapping(route())

    subject = mapping.subject(record)

    assert covers(mapping.partition_filter(record.kafka_partition), subject)
    assert not {"*", ">", ""} & set(subject.split("."))
    assert subject.isascii()
    assert not any(c.isspace() for c in subject)


def test_a_tombstone_is_not_an_empty_value() -> None:
    mapping = Mapping(route())
    tombstone = Record(0, 7, 5, TimestampType.CREATE, b"k", None)

    _, read = through_the_wire(mapping, tombstone)

    assert read.value is None
    assert through_the_wire(mapping, tombstone._replace(value=b""))[1].value == b""


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("flights.{key}", "partition"),
        ("flights.{partition}.{partition}", "partition"),
        ("flights.{partition}.{key}.{key}", "key"),
        ("flights.{key}.{partition}", "before"),
        ("flights..{partition}", "token"),
        ("flights.*.{partition}", "token"),
        ("flights.{partition}.>", "token"),
        ("flights.p{partition}", "token"),
        ("fl ights.{partition}", "token"),
        ("$JS.{partition}", "server"),
        ("", "token"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_its_reason(
    template: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Mapping(route(template))


def test_a_topic_with_an_empty_token_cannot_be_part_of_a_subject() -> None:
    with pytest.raises(ConfigurationError, match="empty token"):
        Mapping(route("{topic}.{partition}", topic="a..b"))


def test_a_topics_dots_make_several_tokens() -> None:
    mapping = Mapping(route("in.{topic}.{partition}.{key}", topic="eu.orders"))

    assert mapping.subject(Record(3, 0, 0, TimestampType.CREATE, b"k", b"")) == "in.eu.orders.3.k"


@pytest.mark.parametrize(
    ("template", "checkpoint"),
    [
        ("flights.{partition}.{key}", "flights._checkpoint.4"),
        ("kafka.flights.{partition}.{key}", "kafka.flights._checkpoint.4"),
        ("all.{partition}.{key}", "all.flights._checkpoint.4"),
        ("{partition}.{key}", "flights._checkpoint.4"),
    ],
)
def test_checkpoints_have_a_subject_no_record_has(template: str, checkpoint: str) -> None:
    mapping = Mapping(route(template))

    assert mapping.checkpoint_subject(4) == checkpoint
    assert any(covers(subject, checkpoint) for subject in mapping.stream_subjects)
    assert not covers(mapping.partition_filter(4), checkpoint)


def test_a_message_under_another_keys_subject_is_no_record() -> None:
    mapping = Mapping(route())
    lines = mapping.header_lines(Record(0, 1, 2, TimestampType.CREATE, b"a", b"v"))
    headers = parse_block(f"NATS/1.0\r\n{lines}\r\n".encode())[1]

    with pytest.raises(ValueError, match="subject"):
        mapping.record("flights.1.a", headers, b"v")
