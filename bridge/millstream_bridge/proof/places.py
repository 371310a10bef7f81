"""Where a partition's records are in its stream."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from ..jetstream.reader import sequence
from ..records.mapping import Mapping
from .decode import Decoder
from .sides import Part, Sides

_STEPS: Final = 16
"""So many messages without a source are asked for one by one before they are read in a row."""


@dataclass(frozen=True, slots=True)
class Places:
    """Finds records by their sequence or offset, without reading all that is before."""

    sides: Sides
    mapping: Mapping

    async def next_record(self, part: Part, partition: int, seq: int) -> tuple[int, int | None]:
        """Sequence and offset of the partition's first record at a sequence or later."""
        subject = self.mapping.partition_filter(partition)
        for _ in range(_STEPS):
            found = await self.sides.next_message(part, subject, seq)
            if found is None:
                return seq, None
            source = self.mapping.source_in(found.headers)
            if source is not None:
                return found.seq, source.offset
            seq = found.seq + 1
        async with aclosing(self.sides.messages(part, subject, seq)) as batches:
            async for batch in batches:
                for ack, _, block, _ in batch:
                    source = self.mapping.source_in(Decoder.lines(block))
                    if source is not None:
                        return sequence(ack), source.offset
        return seq, None

    async def first_seq(self, part: Part, partition: int, offset: int) -> int:
        """The first sequence at which the partition's offset is ``offset`` or more."""
        low, high = part.info.first_seq, part.info.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            seq, at = await self.next_record(part, partition, middle)
            if at is None or seq >= high or at >= offset:
                high = middle
            else:
                low = seq + 1
        return low
