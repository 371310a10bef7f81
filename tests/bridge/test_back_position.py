"""Where the way back begins: a position of this stream as it is, or what the records say."""

from collections.abc import Sequence
from typing import cast

import pytest

from millstream_bridge import ConfigurationError, Record, Unreachable
from millstream_bridge.back.position import StreamFacts, newest_returned
from millstream_bridge.kafka.reading import records_between
from millstream_bridge.kafka.sink import Position
from millstream_bridge.kafka.source import KafkaSource
from millstream_bridge.model import TimestampType, Watermarks
from millstream_bridge.ports import Polled
from millstream_bridge.records.origin import Return, marks

STREAM = StreamFacts(name="S", created="2026-11-01", first_seq=1, last_seq=9)


class Source:
    """A Kafka that gives these records, one batch each, and then an end or nothing for ever."""

    place = ("Kafka", "kafka:9092")

    def __init__(self, ends: dict[int, Watermarks], *records: Record, tells_ends: bool = True):
        self.ends, self.records = ends, list(records)
        self._tells_ends = tells_ends

    async def watermarks(self) -> dict[int, Watermarks]:
        return self.ends

    async def assign(self, positions: dict[int, int], partitions: Sequence[int]) -> None:
        self.records = [it for it in self.records if it.kafka_partition in partitions]

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        if self.records:
            return Polled([self.records.pop(0)], {})
        return Polled([], {p: it.high for p, it in self.ends.items()} if self._tells_ends else {})


def back_from(seq: int, partition: int, offset: int, route: str = "r") -> Record:
    """A record that came back from a sequence."""
    headers = marks(route, Return("S", seq))
    return Record(partition, offset, 1, TimestampType.CREATE, b"k", b"v", headers)


def test_a_position_of_the_stream_up_to_its_end_is_good() -> None:
    STREAM.check(STREAM.at(10))


@pytest.mark.parametrize(
    ("position", "says"),
    [
        (Position("S", "2026-10-01", 4), "made 2026-10-01; stream S was made 2026-11-01"),
        (Position("T", "2026-11-01", 4), "of stream T"),
        (STREAM.at(11), "sequence 11 of stream S, which ends at 9"),
    ],
)
def test_a_position_of_another_stream_or_behind_its_end_is_refused(
    position: Position, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        STREAM.check(position)


async def test_the_records_say_the_newest_that_came_back_and_who_may_have_lost_it() -> None:
    ends = {0: Watermarks(0, 9), 1: Watermarks(3, 9), 2: Watermarks(3, 9), 3: Watermarks(0, 0)}
    source = Source(
        ends,
        back_from(7, 0, 1),
        back_from(5, 0, 2),
        back_from(6, 1, 4),
        back_from(8, 0, 3, route="another"),
    )

    newest, unsure = await newest_returned(cast(KafkaSource, source), "r")

    assert newest == {0: 7, 1: 6}
    assert unsure == [2]  # its beginning is gone, and nothing that is left came back


async def test_a_partition_that_gives_nothing_more_before_its_end_is_named() -> None:
    """As while a transaction is open: what is behind it is not told."""
    source = Source({0: Watermarks(0, 9)}, back_from(7, 0, 1), tells_ends=False)
    found: list[Record] = []

    async def read() -> None:
        async for records in records_between(cast(KafkaSource, source), source.ends):
            found.extend(records)

    with pytest.raises(Unreachable, match="partition 0 gave nothing more before offset 9; a trans"):
        await read()

    assert [it.offset for it in found] == [1]
