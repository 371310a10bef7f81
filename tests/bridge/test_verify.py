"""The proof finds what is not equal, and says where."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, strategies as st

from millstream_bridge import Record, verify
from millstream_bridge.jetstream.reader import sequence
from millstream_bridge.model import KafkaHeader, TimestampType
from millstream_bridge.moving.chain import ChainPublisher
from millstream_bridge.proof.ledger import Ledger, compare, different_blocks
from millstream_bridge.proof.parts import joined, parts_of, parts_of_all, record_of
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_mapping import records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


@given(records, records)
def test_two_records_have_the_same_parts_only_if_they_are_equal(one: Record, two: Record) -> None:
    same = one._replace(kafka_partition=0) == two._replace(kafka_partition=0)

    assert (parts_of(one) == parts_of(two)) is same
    assert (joined(parts_of(one)) == joined(parts_of(two))) is same


@given(records)
def test_a_record_is_made_again_from_its_parts(record: Record) -> None:
    assert record_of(record.kafka_partition, parts_of(record)) == record


def test_headers_that_look_alike_when_joined_have_different_parts() -> None:
    one = Record(0, 0, 0, TimestampType.CREATE, b"k", b"v", (("ab", b"c"),))
    two = one._replace(headers=(("a", b"bc"),))

    assert parts_of(one) != parts_of(two)


@given(st.lists(records, max_size=5))
def test_many_records_have_the_parts_that_each_has(many: list[Record]) -> None:
    assert parts_of_all(many) == [*map(parts_of, many)]


HEADERS = (("a", b"1"), ("b c", b"2"))


@given(
    st.lists(
        st.sampled_from(
            [
                HEADERS,
                (("a", b""), ("b c", b"other")),
                (("a", b"1"), ("b c", None)),
                (("a", b"1\r\n"), ("b c", b"2")),
                (("b c", b"2"), ("a", b"1")),
                (("a", b"1"),),
                (),
            ]
        )
    )
)
def test_headers_of_the_same_names_have_the_lines_that_each_has(
    headers: list[tuple[KafkaHeader, ...]],
) -> None:
    record = Record(0, 7, 1_700_000_000_000, TimestampType.CREATE, b"k", b"v", HEADERS)
    many = [record._replace(offset=n, headers=it) for n, it in enumerate([HEADERS, *headers])]

    assert parts_of_all(many) == [*map(parts_of, many)]


@given(st.sets(st.integers(0, 5_000), min_size=1), st.integers(1, 50))
def test_a_run_of_records_comes_to_what_they_come_to_one_by_one(
    numbers: set[int], size: int
) -> None:
    offsets = sorted(numbers)
    one_by_one, in_runs = ledger_of(offsets), Ledger()
    parts = [parts_of(Record(0, it, 0, TimestampType.CREATE, None, b"v")) for it in offsets]
    places = [b"$JS.ACK.S.c.1.%d.1.0.0" % seq for seq in range(1, len(offsets) + 1)]
    for at in range(0, len(offsets), size):
        run = slice(at, at + size)
        in_runs.add_all(offsets[run], parts[run], places[run])
        in_runs.settle()

    assert in_runs.side() == one_by_one.side()
    assert in_runs.blocks == one_by_one.blocks
    assert in_runs.starts == one_by_one.starts


def ledger_of(offsets: Sequence[int]) -> Ledger:
    ledger = Ledger()
    for seq, offset in enumerate(offsets, 1):
        record = Record(0, offset, 0, TimestampType.CREATE, None, b"v")
        ledger.add(offset, parts_of(record), b"$JS.ACK.S.c.1.%d.1.0.0" % seq)
    return ledger


def test_a_missing_record_is_located_by_its_block() -> None:
    whole, holed = ledger_of(range(5_000)), ledger_of([n for n in range(5_000) if n != 3_210])

    sides = whole.side(), holed.side()

    assert sides[0].digest != sides[1].digest
    assert (sides[0].count, sides[1].count) == (5_000, 4_999)
    assert different_blocks(whole, holed) == [3]
    assert sequence(holed.starts[3]) == 3_001


def test_equal_sides_have_no_different_block() -> None:
    one, two = ledger_of([5, 7, 2_000]), ledger_of([5, 7, 2_000])

    assert one.side() == two.side()
    assert different_blocks(one, two) == []


def test_a_record_that_kafka_does_not_have_is_found() -> None:
    record = Record(0, 4, 0, TimestampType.CREATE, None, b"v")

    difference = compare(0, [], [(9, record)])

    assert difference is not None
    assert (difference.offset, difference.seq) == (4, 9)
    assert "Kafka does not have" in difference.what


Change = Callable[[list[Record], int], list[Record]]


def altered(**changes: object) -> Change:
    def change(records: list[Record], at: int) -> list[Record]:
        return [*records[:at], records[at]._replace(**changes), *records[at + 1 :]]  # type: ignore[arg-type]

    return change


def dropped(records: list[Record], at: int) -> list[Record]:
    return [*records[:at], *records[at + 1 :]]


def repeated(records: list[Record], at: int) -> list[Record]:
    return [*records[: at + 1], records[at], *records[at + 1 :]]


def swapped(records: list[Record], at: int) -> list[Record]:
    return [*records[:at], records[at + 1], records[at], *records[at + 2 :]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (altered(value=b"leg 0x"), "different value"),
        (altered(value=None), "different value"),
        (altered(key=b"other"), "different key"),
        (altered(timestamp_ms=1), "different timestamp_ms"),
        (altered(timestamp_type=TimestampType.LOG_APPEND), "different timestamp_type"),
        (altered(headers=(("n", b"2"),)), "different headers"),
        (dropped, "does not have this record"),
        (repeated, "stored again"),
        (swapped, "comes after"),
    ],
    ids=["value", "null", "key", "time", "type", "headers", "drop", "repeat", "swap"],
)
async def test_a_bridge_that_spoils_one_record_is_found_out(
    nats_server: Server, mock: Kafka, topic: str, change: Change, what: str
) -> None:
    mock.create_topic(topic, 1)
    sent = [{"partition": 0, "key": b"k", "value": b"leg %d" % n} for n in range(1_500)]
    mock.produce(topic, [{**one, "timestamp": 9, "headers": [("n", b"1")]} for one in sent])
    spoiled = 1_234

    class Spoiler(ChainPublisher):
        async def send(self, records: Sequence[Record]) -> None:
            at = next((k for k, r in enumerate(records) if r.offset == spoiled), None)
            await super().send(records if at is None else change(list(records), at))

    await move_all(mock.bootstrap, nats_server.url, a_route(topic), make_publisher=Spoiler)
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))

    assert not proof.equal
    assert proof.difference is not None
    assert proof.difference.offset == spoiled
    assert what in proof.difference.what
