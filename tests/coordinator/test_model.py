"""Records as they are stored, and the book that keeps them."""

import pytest

from millstream_coordinator.errors import BadRecord
from millstream_coordinator.machine.book import Book
from millstream_coordinator.model import (
    ConfigRecord,
    DonePosition,
    DoneRecord,
    LeaderRecord,
    MemberRecord,
    PartitionRecord,
    PartitionState,
    Record,
    decode,
    encode,
)

RECORDS = [
    ConfigRecord(partitions=4, stream="S", filter="s.{partition}.*"),
    LeaderRecord(member="a", instance="1"),
    MemberRecord(instance="1", labels={"zone": "x"}, is_static=True),
    PartitionRecord(epoch=7, owner="a", instance="1", state=PartitionState.OWNED, floor=9),
    DoneRecord(instance="1", partitions={3: DonePosition(epoch=7, floor=9, done=((11, 14),))}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_reads_back(record: Record) -> None:
    assert decode(type(record), encode(record)) == record


def test_a_partition_is_stored_as_documented() -> None:
    record = PartitionRecord(
        epoch=7, owner="a", instance="1", next="b", next_instance="2", state=PartitionState.MOVING
    )

    assert encode(record) == (
        b'{"epoch":7,"owner":"a","instance":"1","next":"b","next_instance":"2","floor":0,'
        b'"state":"moving","done_from":null,"cause":"","stopped_ns":0,"stopped_seq":null,'
        b'"stopped_error":"","skip_seq":null,"level":null,"version":1}'
    )


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert decode(LeaderRecord, b'{"member":"a","instance":"1","mood":"good"}') == LeaderRecord(
        member="a", instance="1"
    )


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"epoch":"seven"}', b'{"state":"odd"}'])
def test_bytes_that_are_no_record_are_said(value: bytes) -> None:
    with pytest.raises(BadRecord, match="not a PartitionRecord"):
        decode(PartitionRecord, value)


def test_older_news_never_replaces_newer() -> None:
    book = Book()
    book.note("part.1", encode(PartitionRecord(epoch=2)), 8)

    assert not book.note("part.1", encode(PartitionRecord(epoch=1)), 5)
    assert book.partitions[1].epoch == 2


def test_a_deletion_is_news_with_a_revision() -> None:
    book = Book()
    book.note("members.a", encode(MemberRecord(instance="1")), 3)

    assert book.note("members.a", None, 4)
    assert book.members == {}
    assert book.revision("members.a") == 4


def test_a_value_that_cannot_be_read_counts_as_absent_and_can_be_replaced() -> None:
    book = Book()

    assert book.note("leader", b"?", 3)
    assert book.leader is None
    assert book.revision("leader") == 3
