"""Kafka's side of all partitions: the records of which the stream should have each.

Those that came back from NATS it should not have again (`returns`), nor those that the bridge
parked or skipped.
"""

import itertools
import operator
from collections.abc import AsyncIterator, Iterable, Mapping as AbcMapping, Sequence
from dataclasses import replace
from typing import Final

from ..errors import BridgeError
from ..model import Record, Watermarks
from ..records.headers import ORIGIN_HEADER, HeaderError
from ..records.mapping import Mapping
from ..records.origin import returned
from ..records.poison import mark_in
from .decode import Decoder
from .ledger import Ledger
from .parts import parts_of_all
from .returns import Returns
from .sides import Bounds, Part, Sides
from .stream_side import StreamSide
from .values import Apart, Difference

_PARTITION: Final = operator.itemgetter(0)


class KafkaSide:
    """Reads Kafka's log; what came back from NATS is compared on the way.

    ``marks``: its ends when the proof began. ``absent``: partitions and offsets of the records that
    the bridge did not move.
    """

    def __init__(self, sides: Sides, mapping: Mapping) -> None:
        self.marks = sides.marks
        self.absent: set[tuple[int, int]] = set()
        self.returns = Returns(sides, mapping)
        self._sides = sides
        self._mapping = mapping

    async def learn(self, parts: Sequence[Part]) -> Apart:
        """Learn from the streams what they need not have, and count it; before Kafka is read."""
        self.returns.parts = {p: part for part in parts for p in part.partitions}
        apart = Apart()
        for part in parts:
            token = part.partitions[0] if self._mapping.route.mode == "dense" else "*"
            subject = f"{self._mapping.poison_subject(token)}.*"
            async for batch in self._sides.messages(part, subject, 1):
                for _, _, block, _ in batch:
                    try:
                        mark = mark_in(Decoder.lines(block))
                    except HeaderError:
                        continue  # it is damaged: the record that it stands for is missing
                    if mark is None or mark.source.topic != self._mapping.route.topic:
                        continue
                    self.absent.add((mark.source.kafka_partition, mark.source.offset))
                    apart.parked += mark.fate == "parked"
                    apart.skipped += mark.fate == "skipped"
        return apart

    async def batches(self, bounds: Bounds) -> AsyncIterator[tuple[Sequence[Record], list[Record]]]:
        """All records between offsets, and those of them that should be in the stream."""
        async for records in self._sides.records(bounds):
            yield records, [*self._wanted(records)]
            if self.returns.is_full:
                await self.returns.compare()

    async def read(self, bounds: Bounds, ledgers: AbcMapping[int, Ledger]) -> None:
        """What should be in the stream, into the ledgers."""
        async for _, wanted in self.batches(bounds):
            offsets, parts = [it[1] for it in wanted], parts_of_all(wanted)
            start = 0
            for p, run in itertools.groupby(wanted, _PARTITION):
                end = start + sum(1 for _ in run)
                ledgers[p].add_all(offsets[start:end], parts[start:end])
                ledgers[p].settle()
                start = end

    async def record(self, partition: int, offset: int) -> Record | None:
        """The record of an offset, if there is one."""
        async for records in self._sides.records({partition: Watermarks(offset, offset + 1)}):
            return records[0]
        return None

    async def beside(self, difference: Difference) -> Difference:
        """The difference with Kafka's record beside the stream's, if Kafka has it."""
        if difference.kafka is not None:
            return difference
        try:
            record = await self.record(difference.kafka_partition, difference.offset)
        except BridgeError:
            return difference  # it has gone from Kafka: what is known is told
        return difference if record is None else replace(difference, kafka=record)

    async def behind_the_end(
        self, sides: Iterable[StreamSide], read_to: AbcMapping[int, tuple[int, int]]
    ) -> dict[int, Difference]:
        """Stored records that Kafka does not have, since its log ends before: as it is now.

        Also of those that a round before has compared, when Kafka had them: ``read_to`` of `Seen`.
        """
        beyond = {p: place for side in sides for p, place in side.beyond.items()}
        fallen = {
            p: below
            for p, (_, below) in read_to.items()
            if p not in self.marks or self.marks[p].high < below
        }
        ends = await self._sides.marks_now() if beyond or fallen else {}
        found = {}
        for p, below in fallen.items():
            end = ends[p].high if p in ends else 0
            if end < below:
                what = f"Kafka's log ends here, and had all below offset {below} a round before"
                found[p] = Difference(kafka_partition=p, offset=end, seq=None, what=what)
        for p, (offset, seq) in beyond.items():
            end = ends[p].high if p in ends else 0
            if offset >= end:
                what = f"the stream has a record that Kafka does not have, which ends at {end}"
                found[p] = Difference(kafka_partition=p, offset=offset, seq=seq, what=what)
        return found

    def _wanted(self, records: Sequence[Record]) -> Iterable[Record]:
        name, absent = self._mapping.route.name, self.absent
        for record in records:
            headers = record.headers
            is_marked = headers and headers[0][0] == ORIGIN_HEADER
            if is_marked and (origin := returned(headers, name)) is not None:
                self.returns.note(record, origin)
            elif not absent or (record.kafka_partition, record.offset) not in absent:
                yield record
