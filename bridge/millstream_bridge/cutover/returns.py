"""At which offsets messages that were published straight to NATS are in Kafka now."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..kafka.reading import records_between
from ..kafka.source import KafkaSource
from ..model import Watermarks
from ..records.origin import returned


@dataclass(slots=True)
class Returns:
    """One partition, from an offset on.

    ``back``: sequence to offset; ``own``: the first record at or behind ``own_from`` that did not
    come back.
    """

    own_from: int
    back: dict[int, int] = field(default_factory=dict)
    own: int | None = None


async def read_returns(
    source: KafkaSource,
    route_name: str,
    starts: Mapping[int, Returns],
    begins: Mapping[int, int],
    marks: Mapping[int, Watermarks],
) -> None:
    """Fill in ``starts``, reading each partition from ``begins`` to the end it has in ``marks``.

    Unreachable, RecordError as `records_between`.
    """
    bounds = {p: Watermarks(max(at, marks[p].low), marks[p].high) for p, at in begins.items()}
    async for records in records_between(source, bounds):
        for record in records:
            found = starts[record.kafka_partition]
            back_from = returned(record.headers, route_name)
            if back_from is not None:
                found.back[back_from.seq] = record.offset
            elif found.own is None and record.offset >= found.own_from:
                found.own = record.offset
