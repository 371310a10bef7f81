"""At which offsets messages that were published straight to NATS are in Kafka now."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..kafka.reading import records_between
from ..kafka.source import KafkaSource
from ..model import Watermarks
from ..records.origin import returned


@dataclass(slots=True)
class Returns:
    """What one partition of the topic holds from an offset on, read as far as ``read_to``.

    ``stream`` is the partition's, ``back``: sequence in it to offset; ``strange``: offsets of what
    came back from another stream, which the route had before. ``own``: offsets of the records that
    did not come back; of those below ``own_from``, which may rise, only a few.
    """

    stream: str
    begin: int
    own_from: int
    read_to: int = field(init=False)
    back: dict[int, int] = field(default_factory=dict)
    strange: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.read_to = self.begin

    @property
    def first_own(self) -> int | None:
        """The first record at or behind ``own_from`` that did not come back."""
        place = bisect.bisect_left(self.own, self.own_from)
        return self.own[place] if place < len(self.own) else None


async def read_on(
    source: KafkaSource,
    route_name: str,
    returns: Mapping[int, Returns],
    marks: Mapping[int, Watermarks],
) -> None:
    """Read each partition on to the end it has in ``marks``.

    Unreachable, RecordError as `records_between`.
    """
    bounds = {
        p: Watermarks(max(it.read_to, marks[p].low), marks[p].high) for p, it in returns.items()
    }
    async for records in records_between(source, bounds):
        for record in records:
            found = returns[record.kafka_partition]
            back_from = returned(record.headers, route_name)
            if back_from is not None and back_from.stream == found.stream:
                found.back[back_from.seq] = record.offset
            elif back_from is not None:
                found.strange.append(record.offset)
            elif record.offset >= found.own_from:
                found.own.append(record.offset)
    for p, it in returns.items():
        it.read_to = max(it.read_to, marks[p].high)
