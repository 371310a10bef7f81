"""Messages of a stream into the books of their partitions: in runs what they are one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.jetstream.connection import Delivery
from millstream_bridge.model import Watermarks
from millstream_bridge.proof.parts import Parts
from millstream_bridge.proof.stream_side import StreamSide
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route

MARKS = {0: Watermarks(2, 12), 1: Watermarks(0, 20)}


@dataclass
class Noted:
    """A `Book` that notes what it is given."""

    records: list[tuple[int, Parts, bytes]] = field(default_factory=list)

    def add(self, offset: int, parts: Parts, place: bytes) -> None:
        self.records.append((offset, parts, place))

    def add_all(self, offsets: Sequence[int], parts: Sequence[Parts], places: list[bytes]) -> None:
        self.records += zip(offsets, parts, places, strict=True)


def messages(places: Sequence[tuple[int, int, bool]], seqs: Sequence[int] = ()) -> list[Delivery]:
    """Of partitions and offsets, in the stream's order; those that are not plain have no source."""
    found = []
    for n, (partition, offset, is_plain) in enumerate(places):
        seq = seqs[n] if seqs else n + 1
        source = b"Millstream-Source: flights %d %d 5 c\r\n" % (partition, offset)
        block = b"NATS/1.0\r\n" + source * is_plain + b"Millstream-Origin: flights\r\n\r\n"
        ack = b"$JS.ACK.S.c.1.%d.%d.1700000000000000000.0" % (seq, seq)
        found.append((ack, b"flights.%d.k%d" % (partition, offset), block, b"v"))
    return found


def fed(
    batches: Sequence[list[Delivery]], *, is_dense: bool, seen: dict[int, tuple[int, int]]
) -> tuple[object, ...]:
    books = {p: Noted() for p in MARKS}
    others: dict[str, list[int]] = {}
    side = StreamSide(
        Mapping(a_route("flights")), MARKS, books, is_dense=is_dense, seen=seen, others=others
    )
    for batch in batches:
        assert side.add_all(batch) == len(batch)
    kept = {p: book.records for p, book in books.items()}
    return kept, side.differences, side.apart, side.first_beyond, side.beyond, others


rising = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(0, 9))).map(
    lambda steps: [
        (partition, sum(step for _, step, _ in steps[: n + 1]), chance > 0)
        for n, (partition, _, chance) in enumerate(steps)
    ]
)
any_order = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 22), st.integers(0, 9).map(bool)))


@given(rising | any_order, st.booleans(), st.sampled_from([{}, {0: (3, 5)}, {1: (2, 4)}]))
def test_messages_in_a_row_come_to_what_they_come_to_one_by_one(
    places: list[tuple[int, int, bool]], is_dense: bool, seen: dict[int, tuple[int, int]]
) -> None:
    batch = messages(places)

    assert fed([batch], is_dense=is_dense, seen=seen) == fed(
        [[it] for it in batch], is_dense=is_dense, seen=seen
    )


@pytest.mark.parametrize("offsets", [[1, 2, 4, 3, 5], [1, 2, 2, 3, 5], [1, 3, 2, 4, 5]])
def test_a_row_that_does_not_rise_is_a_difference(offsets: list[int]) -> None:
    batch = messages([(1, offset, True) for offset in offsets])

    _, differences, *_ = fed([batch], is_dense=False, seen={})

    assert differences


@pytest.mark.parametrize(
    ("offsets", "seqs"),
    [([0, 1, 3, 4], [1, 2, 3, 4]), ([0, 1, 2, 3], [2, 3, 4, 5]), ([0, 2, 3], [1, 2, 4])],
)
def test_a_dense_row_with_other_sequences_is_a_difference(
    offsets: list[int], seqs: list[int]
) -> None:
    batch = messages([(1, offset, True) for offset in offsets], seqs)

    _, differences, *_ = fed([batch], is_dense=True, seen={})

    assert differences
