"""At which offsets messages that were published straight to NATS are in Kafka now."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..kafka.source import KafkaSource
from ..model import Watermarks
from ..records.origin import returned

_POLL_RECORDS = 2_000
_POLL_S = 0.5
_SILENT_POLLS_MAX = 40


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

    TimeoutError: the end was not reached; a transaction may be open. Unreachable, RecordError.
    """
    goal = {p: mark.high for p, mark in marks.items() if p in begins and begins[p] < mark.high}
    if not goal:
        return
    await source.assign({p: max(begins[p], marks[p].low) for p in goal}, sorted(goal))
    silent = 0
    while goal:
        polled = await source.poll(_POLL_RECORDS, _POLL_S)
        if polled.error is not None:
            raise polled.error
        for record in polled.records:
            number = record.kafka_partition
            found = starts[number]
            back_from = returned(record.headers, route_name)
            if back_from is not None:
                found.back[back_from.seq] = record.offset
            elif found.own is None and record.offset >= found.own_from:
                found.own = record.offset
            if record.offset + 1 >= goal.get(number, record.offset + 2):
                del goal[number]
        for partition, end in polled.ends.items():
            if end >= goal.get(partition, end + 1):
                del goal[partition]
        silent = 0 if polled.records or polled.ends else silent + 1
        if silent > _SILENT_POLLS_MAX:
            raise TimeoutError(f"partition {min(goal)} gave nothing up to its end")
