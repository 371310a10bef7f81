"""The closer look: blocks of both sides read again and compared record by record."""

from collections.abc import Sequence
from typing import NamedTuple

from ..jetstream.reader import sequence
from ..model import Record, Watermarks
from .kafka_side import KafkaSide
from .ledger import Ledger, block_bounds, compare, different, different_blocks
from .limits import Limits
from .sides import Bounds, Part
from .stream_reader import StreamReader
from .values import Difference


class Block(NamedTuple):
    """A block of a partition: Kafka's records, the stream's with their sequences, how they part."""

    kafka: list[Record]
    stored: list[tuple[int, Record]]
    difference: Difference | None


class CloserLook:
    """Looks at partitions of these streams, to the end of each as it is in ``parts``."""

    def __init__(
        self, kafka: KafkaSide, limits: Limits, reader: StreamReader, parts: Sequence[Part]
    ) -> None:
        self._kafka = kafka
        self._limits = limits
        self._reader = reader
        self._of = {p: part for part in parts for p in part.partitions}

    async def locate(
        self, partition: int, kafka: Ledger, nats: Ledger, bounds: Watermarks
    ) -> Difference | None:
        """The first difference; None: only what was removed while it was read is missing."""
        removed_below = await self._limits.removed_below_now(self._of[partition], partition)
        for number in different_blocks(kafka, nats):
            offsets = block_bounds(number, bounds)
            if offsets.high <= removed_below:
                continue
            below = [sequence(ack) for it, ack in nats.starts.items() if it <= number]
            found = await self.blocks({partition: offsets}, max(below, default=1))
            difference = found[partition].difference
            if difference is None and offsets.low >= removed_below:
                difference = Difference(
                    kafka_partition=partition,
                    offset=offsets.low,
                    seq=sequence(nats.starts[number]) if number in nats.starts else None,
                    what="a block differed and no longer does: somebody changes one of the sides",
                )
            if difference is not None:
                return difference
        return None

    async def blocks(self, bounds: Bounds, first_seq: int | None = None) -> dict[int, Block]:
        """One block of each partition; ``first_seq``: from where on the stream has them."""
        kafka: dict[int, list[Record]] = {p: [] for p in bounds}
        async for _, wanted in self._kafka.batches(bounds):
            for record in wanted:
                kafka[record.kafka_partition].append(record)
        found = {}
        for p, offsets in bounds.items():
            stored, difference = await self._reader.records(self._of[p], p, offsets, first_seq)
            if difference is None:
                difference = await self._compare(p, kafka[p], stored)
            else:
                difference = await self._kafka.beside(difference)
            found[p] = Block(kafka[p], stored, difference)
        return found

    async def pair(self, partition: int, offset: int, seq: int) -> Difference:
        """The difference of one record that was on both sides."""
        offsets = Watermarks(offset, offset + 1)
        stored, _ = await self._reader.records(self._of[partition], partition, offsets, seq)
        record = await self._kafka.record(partition, offset)
        if record is not None:
            for at, other in stored:
                if (found := different(partition, record, at, other)) is not None:
                    return found
        what = "the two records differed, and one is gone or no longer does"
        return Difference(kafka_partition=partition, offset=offset, seq=seq, what=what)

    async def _compare(
        self, partition: int, kafka: list[Record], stored: list[tuple[int, Record]]
    ) -> Difference | None:
        """The first difference of a block but for what the stream's limits have removed by now."""
        difference = compare(partition, kafka, stored)
        if difference is None or difference.seq is not None:
            return difference
        removed_below = await self._limits.removed_below_now(self._of[partition], partition)
        if difference.offset >= removed_below:
            return difference
        there = {record.offset for _, record in stored}
        kept = [it for it in kafka if it.offset >= removed_below or it.offset in there]
        return compare(partition, kept, stored)
