"""A topic's records between two offsets, batch by batch: for whoever does not follow the topic."""

from collections.abc import AsyncIterator, Mapping, Sequence

from ..errors import Unreachable
from ..model import Record, Watermarks
from ..ports import Source

_POLL_RECORDS = 1_000
_POLL_S = 0.5
_SILENT_POLLS_MAX = 60


async def records_between(
    source: Source, bounds: Mapping[int, Watermarks]
) -> AsyncIterator[Sequence[Record]]:
    """Batches of the records of each partition from ``low`` up to, not with, ``high``.

    In order per partition. Unreachable: the source fell silent before the end, because it is away
    or a transaction is open. RecordError: a record is gone.
    """
    left = {p: it.high for p, it in bounds.items() if it.high > it.low}
    if not left:
        return
    await source.assign({p: bounds[p].low for p in left}, sorted(left))
    silent = 0
    while left:
        polled = await source.poll(_POLL_RECORDS, _POLL_S)
        records = polled.records
        reached = [
            p for p, at in {it[0]: it[1] for it in records}.items() if at + 1 >= left.get(p, 0)
        ]
        if reached:
            records = [it for it in records if it.offset < left.get(it.kafka_partition, 0)]
            for partition in reached:
                left.pop(partition, None)
        if records:
            yield records
        if polled.error is not None:
            raise polled.error
        for partition, end in polled.ends.items():
            if partition in left and end >= left[partition]:
                del left[partition]
        silent = 0 if polled.records or polled.ends else silent + 1
        if silent > _SILENT_POLLS_MAX:
            partition = min(left)
            raise Unreachable(
                *source.place,
                f"partition {partition} gave nothing more before offset {left[partition]};"
                " a transaction may be open",
            )
