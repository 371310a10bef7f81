"""Descriptions of topics and groups: what can be said, and what is refused with its place."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from millstream_coordinator.model import FailurePolicy, Retention
from millstream_coordinator.partitioning.description import parse_description, read_description
from millstream_coordinator.partitioning.partition import Partitioner
from millstream_coordinator.partitioning.table import TopicError
from millstream_coordinator.partitioning.topic import (
    Compression,
    Discard,
    Layout,
    Start,
    StartKind,
    Storage,
    StreamOptions,
    WrittenBy,
)

TOKEN = """
[topic.ORDERS]
subject = "orders.{partition}.{partition:16}.{region}.{customer}"
partitions = 4
"""
SOURCED = """
[topic.ORDERS]
layout = "sourced"
"""


def test_a_topic_and_a_group_need_little() -> None:
    description = parse_description(TOKEN + "[group.billing]")

    topic, group = description.topics["ORDERS"], description.groups["billing"]
    assert (topic.layout, topic.written_by, topic.partitioner) == (
        Layout.TOKEN,
        WrittenBy.SERVER,
        Partitioner.NATS,
    )
    assert (topic.retention, topic.options) == (Retention.LIMITS, StreamOptions())
    assert (group.topic, group.levels, group.level) == ("ORDERS", (4, 16), None)
    assert group.rule == topic.rule
    assert (group.on_failure, group.max_attempts, group.max_ack_pending) == ("retry", 5, 256)
    assert group.start == Start(kind=StartKind.EARLIEST)


def test_everything_can_be_said() -> None:
    description = parse_description(
        """
        [topic.ORDERS]
        layout = "token"
        subject = "orders.{partition}.{partition:16}.>"
        partitions = 4
        written_by = "producers"
        partitioner = "crc32"
        retention = "workqueue"
        storage = "memory"
        replicas = 3
        max_age = "7d"
        max_bytes = "10GiB"
        max_messages = 1_000_000
        max_message_bytes = 65536
        discard = "new"
        duplicate_window = "500ms"
        compression = "s2"

        [group.billing]
        topic = "ORDERS"
        key = "header:Customer-Id on orders.{partition}.{partition:16}.*.>"
        level = 16
        max_ack_pending = 1
        on_failure = "dead-letter"
        max_attempts = 3
        storage = "file"
        replicas = 1
        dead_letters = { max_age = "30d", max_bytes = "1MB", max_messages = 10 }
        """
    )

    topic, group = description.topics["ORDERS"], description.groups["billing"]
    assert topic.options == StreamOptions(
        storage=Storage.MEMORY,
        replicas=3,
        max_age=timedelta(days=7),
        max_bytes=10 * 2**30,
        max_messages=10**6,
        max_message_bytes=65536,
        discard=Discard.NEW,
        duplicate_window=timedelta(milliseconds=500),
        compression=Compression.S2,
    )
    assert (topic.retention, topic.partitioner) == (Retention.WORK_QUEUE, Partitioner.CRC32)
    assert (group.rule.header, group.level, group.max_ack_pending) == ("Customer-Id", 16, 1)
    assert (group.on_failure, group.max_attempts) == (FailurePolicy.DEAD_LETTER, 3)
    assert group.options == StreamOptions()
    assert group.dead_letters == StreamOptions(
        max_age=timedelta(days=30), max_bytes=10**6, max_messages=10
    )


def test_a_group_of_a_sourced_topic_reads_its_own_subjects() -> None:
    description = parse_description(
        SOURCED
        + """
        [group.billing]
        key = "orders.{customer}.*"
        partitions = 4
        levels = [16, 64]
        """
    )

    group = description.groups["billing"]
    assert group.levels == (4, 16, 64)
    assert group.rule.subject_filter(7, 16) == "millstream.work.billing.*.7.*.orders.*.*"
    subject = "millstream.work.billing.3.7.39.orders.c7.paid"
    assert group.rule.key_of(subject, {}, b"") == b"c7"
    assert [group.rule.partition_of(subject, level) for level in group.levels] == [3, 7, 39]


def test_a_sourced_topics_subject_is_its_groups_key_rule() -> None:
    description = parse_description(
        SOURCED + 'subject = "orders.{customer}.*"\n[group.g]\npartitions = 2'
    )

    assert description.groups["g"].rule.subject_filter(1) == "millstream.work.g.1.orders.*.*"


def test_a_topic_of_streams_is_written_by_producers() -> None:
    description = parse_description(
        """
        [topic.ORDERS]
        layout = "streams"
        subject = "orders.{partition}.{customer}"
        partitions = 12
        """
    )

    topic = description.topics["ORDERS"]
    assert (topic.written_by, topic.partitioner) == (WrittenBy.PRODUCERS, Partitioner.KAFKA)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("'earliest'", Start()),
        ("'latest'", Start(kind=StartKind.LATEST)),
        ("'sequence:17'", Start(kind=StartKind.SEQUENCE, sequence=17)),
        (
            "'time:2026-01-31T12:00:00+01:00'",
            Start(kind=StartKind.TIME, time=datetime(2026, 1, 31, 11, tzinfo=UTC)),
        ),
        (
            "2026-01-31T11:00:00Z",
            Start(kind=StartKind.TIME, time=datetime(2026, 1, 31, 11, tzinfo=UTC)),
        ),
    ],
)
def test_a_start_position_is_read(text: str, start: Start) -> None:
    group = parse_description(f"{TOKEN}[group.g]\nstart = {text}").groups["g"]

    assert group.start == start
    assert Start.parse(str(start)) == start


TOPIC_ERRORS = [
    ("max_age = '7 days'", "topic.ORDERS", "max_age", "no duration"),
    ("max_age = '0s'", "topic.ORDERS", "max_age", "no duration"),
    ("max_bytes = '7 gigs'", "topic.ORDERS", "max_bytes", "no size"),
    ("max_bytes = 0", "topic.ORDERS", "max_bytes", "no size"),
    ("max_message_bytes = '2GiB'", "topic.ORDERS", "max_message_bytes", "over 2 GiB"),
    ("replicas = 6", "topic.ORDERS", "replicas", "not from 1 to 5"),
    ("replicas = true", "topic.ORDERS", "replicas", "not a whole number"),
    ("replicas = '3'", "topic.ORDERS", "replicas", "not a whole number"),
    ("storage = 'disk'", "topic.ORDERS", "storage", "none of 'file', 'memory'"),
    ("storage = 3", "topic.ORDERS", "storage", "not a text"),
    ("retention = 'interest'", "topic.ORDERS", "retention", "loses messages"),
    ("max_agee = '7d'", "topic.ORDERS", "max_agee", "did you mean 'max_age'"),
    ("x = '7d'", "topic.ORDERS", "x", "known: layout"),
    ("partitioner = 'kafka'", "topic.ORDERS", "partitioner", "the server computes 'nats'"),
    ("max_age = '1m'\nduplicate_window = '2m'", "topic.ORDERS", "duplicate_window", "longer"),
    ("layout = 'streams'", "topic.ORDERS", "subject", "no finer levels"),
    ("[group.g]\nlevel = 8", "group.g", "level", "8 is none of the levels 4, 16"),
    ("[group.g]\npartitions = 4", "group.g", "partitions", "the topic says it"),
    ("[group.g]\nlevels = [8]", "group.g", "levels", "the topic says it"),
    ("[group.g]\ntopic = 'X'", "group.g", "topic", "no [topic.X]"),
    ("[group.g]\nmax_attempts = 3", "group.g", "max_attempts", "means nothing"),
    ("[group.g]\non_failure = 'drop'", "group.g", "on_failure", "none of 'retry'"),
    ("[group.g]\nstart = 'newest'", "group.g", "start", "none of 'earliest'"),
    ("[group.g]\nstart = 'sequence:0'", "group.g", "start", "none of 'earliest'"),
    ("[group.g]\nstart = 'time:x'", "group.g", "start", "no date and time"),
    ("[group.g]\nstart = 2026-01-31T00:00:00", "group.g", "start", "no time zone"),
    ("[group.g]\ndead_letters = {}", "group.g", "dead_letters", "there are none"),
    (
        "[group.g]\non_failure = 'park'\ndead_letters = { max_aeg = '1d' }",
        "group.g.dead_letters",
        "max_aeg",
        "did you mean",
    ),
    ("[group.'a.b']", "group.a.b", "", "group name 'a.b'"),
    ("[group.g]\nkey = 'orders.*.*'", "group.g", "key", "several '*'"),
    ("[group.g]\nkey = 'orders.{partition}.{c}'", "group.g", "key", "partitions elsewhere"),
    (
        "[group.g]\nkey = 'sales.{partition}.{partition:16}.{a}.{b}'",
        "group.g",
        "key",
        "reads nothing",
    ),
    (
        "[group.g]\nkey = 'orders.{partition}.{partition:16}.*.{customer}'",
        "group.g",
        "key",
        "one key would be in many partitions",
    ),
    ("[groups.g]", "", "groups", "there are only"),
    ("[topic.'O.S']\nsubject='s.{partition}.{k}'\npartitions=1", "topic.O.S", "", "topic name"),
    (
        "[topic.SALES]\nsubject='{partition}.{partition:16}.eu.{k}.x'\npartitions=4",
        "topic.SALES",
        "subject",
        "overlaps with 'orders.*.*.*.*' of [topic.ORDERS]",
    ),
    ("[topic.B]\nlayout='sourced'\n[group.g]", "group.g", "topic", "say which of ORDERS, B"),
]


@pytest.mark.parametrize(("more", "table", "key", "reason"), TOPIC_ERRORS)
def test_what_does_not_fit_a_topic_is_told_with_its_place(
    more: str, table: str, key: str, reason: str
) -> None:
    with pytest.raises(TopicError) as refused:
        parse_description(TOKEN + more, file="orders.toml")

    error = refused.value
    assert (error.file, error.table, error.key) == ("orders.toml", table, key)
    assert reason in str(error)
    assert str(error).startswith("orders.toml: ")
    assert "\n" not in str(error)


SOURCED_ERRORS = [
    ("partitions = 4", "topic.ORDERS", "partitions", "each group says"),
    ("written_by = 'server'", "topic.ORDERS", "written_by", "groups' own streams"),
    ("partitioner = 'nats'", "topic.ORDERS", "partitioner", "groups' own streams"),
    ("retention = 'workqueue'", "topic.ORDERS", "retention", "the origin's is 'limits'"),
    ("subject = 'o.{partition}.{k}'", "topic.ORDERS", "subject", "carry no partition"),
    ("[group.g]\nkey = 'o.{k}'", "group.g", "partitions", "say how many"),
    ("[group.g]\npartitions = 4", "group.g", "key", "say which tokens"),
    (
        "[group.g]\npartitions = 4\nkey = 'header:A on o.>'",
        "group.g",
        "key",
        "cannot hash a header",
    ),
    ("[group.g]\npartitions = 4\nkey = 'o.{partition}.{k}'", "group.g", "key", "no partition of"),
    ("[group.g]\npartitions = 4\nkey = 'o.*'", "group.g", "key", "no token is marked"),
    (
        "[group.g]\npartitions = 4\nkey = 'o.{k}'\nlevels = [8, 12]",
        "group.g",
        "levels",
        "12 partitions are no multiple of 8",
    ),
    ("[group.g]\npartitions = 4\nkey = 'o.{k}'\nlevels = ['8']", "group.g", "levels", "whole"),
    (
        "subject = 'o.*'\n[group.g]\npartitions = 4\nkey = 'p.{k}'",
        "group.g",
        "key",
        "reads nothing",
    ),
]


@pytest.mark.parametrize(("more", "table", "key", "reason"), SOURCED_ERRORS)
def test_what_does_not_fit_a_sourced_topic_is_told_with_its_place(
    more: str, table: str, key: str, reason: str
) -> None:
    with pytest.raises(TopicError) as refused:
        parse_description(SOURCED + more, file="orders.toml")

    error = refused.value
    assert (error.table, error.key) == (table, key)
    assert reason in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "describes no topic"),
        ("topic = 3", "write a table per topic"),
        ("[topic]\nname = 'A'", "write a table per topic"),
        ("[topic.A]\nx = = 3", "not TOML"),
        ("[topic.A]\npartitions = 3", "subject: layout token needs one"),
        ("[topic.A]\nsubject = 'a.{partition}.{k}'", "partitions: layout token needs their number"),
        ("[topic.A]\nsubject = 'a.*.{k}'\npartitions = 1", "marks no partition's token"),
        ("[topic.A]\nsubject = 'a.{partition}.*'\npartitions = 1", "no token is marked as the key"),
        ("[topic.A]\nsubject = 'a.{partition}.{k}.>'\npartitions = 1", "cannot be told from"),
        (
            "[topic.A]\nsubject = 'a.{partition}.{partition:6}.{k}'\npartitions = 4",
            "subject: 6 partitions are no multiple of 4",
        ),
        (
            (
                "[topic.A]\nlayout='streams'\nsubject = 'a.{partition}.{k}'\npartitions = 4\n"
                "written_by = 'server'"
            ),
            "cannot choose the stream",
        ),
        (
            (
                "[topic.A]\nlayout='streams'\nsubject='a.{partition}.{k}'\npartitions=1\n"
                "[topic.A-0]\nsubject='b.{partition}.{k}'\npartitions=1"
            ),
            "its stream 'A-0' is [topic.A]'s as well",
        ),
        (
            (
                "[topic.A]\nsubject='a.{partition}.{k}'\npartitions=1\nretention='workqueue'\n"
                "[group.g]\n[group.h]"
            ),
            "[group.h] topic: a work-queue stream has one reader, and [group.g] reads it",
        ),
        (
            (
                "[topic.A]\nsubject='a.{partition}.{k}'\npartitions=1\nretention='workqueue'\n"
                "[group.g]\nstart='latest'"
            ),
            "read from what is left",
        ),
        (
            "[topic.A]\nsubject='a.{partition}.>'\npartitions=1\nwritten_by='producers'\n[group.g]",
            "[group.g] key: the topic's subject marks no key",
        ),
    ],
)
def test_a_description_that_cannot_be_is_one_line(text: str, reason: str) -> None:
    with pytest.raises(TopicError) as refused:
        parse_description(text)

    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "orders.toml"
    file.write_text(TOKEN)

    assert read_description(file).file == str(file)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "orders.toml"
    with pytest.raises(TopicError, match="No such file"):
        read_description(file)

    file.write_bytes(b"[topic.\xff]")
    with pytest.raises(TopicError, match="not UTF-8 at byte 7"):
        read_description(file)
