"""The comparison where a side keeps only the newest records: a compacted topic, such a stream.

Each record of the stream is remembered in a `Newest`, and Kafka's are held against them. What these
books cannot explain is looked at again, in both sides as they are then: a bridge or a producer may
have stored, and Kafka's compaction removed, something since.
"""

import bisect
import math
from collections.abc import Mapping as AbcMapping, Sequence

from ..model import Watermarks
from ..records.mapping import Mapping
from .closer_look import CloserLook
from .found import Found
from .kafka_side import KafkaSide
from .limits import Limits
from .newest import Newest
from .sides import Bounds, Part, Sides
from .stream_reader import StreamReader
from .values import Difference, Side


class NewestCheck:
    """Compares all that is between the bounds, once."""

    def __init__(
        self,
        sides: Sides,
        mapping: Mapping,
        kafka: KafkaSide,
        limits: Limits,
        reader: StreamReader,
    ) -> None:
        self._sides = sides
        self._mapping = mapping
        self._kafka = kafka
        self._limits = limits
        self._reader = reader
        self._books: dict[int, Newest] = {}
        self._others: dict[str, list[int]] = {}
        """The sequences of what is in no book, by subject."""

    async def compare(
        self, bounds: Bounds, parts: Sequence[Part], found: Found, *, is_compacted: bool
    ) -> None:
        """The streams first, then Kafka against them; ``found`` gets what that gives."""
        for part in parts:
            for p in part.partitions:
                self._books[p] = Newest(part.keeps, is_compacted, self._others)
        sides = [
            self._reader.side(part, bounds, self._books, others=self._others) for part in parts
        ]
        read_to = []
        for part, side in zip(parts, sides, strict=True):
            last_seq = await self._reader.read(part, side, 1)
            # What a bridge at work has stored since may have pushed out what was not read yet.
            later = await self._sides.again(part)
            read_to.append(await self._reader.read(later, side, last_seq + 1))
            found.add(side)
        stored = {p: book.side() for p, book in self._books.items()}
        now = [await self._sides.again(part) for part in parts]
        for part in now:
            await self._note_removed(part)
        await self._compare_kafka(bounds)
        for part, last_seq in zip(now, read_to, strict=True):
            for p in part.partitions:
                await self._look_for_newer(part, self._books[p], last_seq)
        await self._look_for_invented(now)
        await self._tell(now, stored, found)
        found.differences = await self._kafka.behind_the_end(sides, {}) | found.differences

    async def _note_removed(self, part: Part) -> None:
        """What may have been removed of a stream, as it is when all was read, or was not moved."""
        ttl_s, info = self._mapping.route.tombstone_ttl_s, part.info
        for p in part.partitions:
            book = self._books[p]
            book.marked = {offset for of, offset in self._kafka.absent if of == p}
            book.removed_below = await self._limits.removed_below(part, p)
            if ttl_s is not None and info.age_s > ttl_s:
                before_ns = info.now_ns - ttl_s * 1e9 if info.now_ns else math.inf
                book.tombstones_expire(before_ns, await self._limits.stored_below(part, p))

    async def _compare_kafka(self, bounds: Bounds) -> None:
        async for records, wanted in self._kafka.batches(bounds):
            for record in records:
                self._books[record.kafka_partition].note(record)
            for record in wanted:
                self._books[record.kafka_partition].compare(record, self._mapping.subject(record))

    async def _look_for_newer(self, part: Part, book: Newest, last_seq: int) -> None:
        """Note as others what came behind the sequence to which a stream was read.

        What pushed a record out may have been pushed out in its turn before it was read; or Kafka
        has compacted it since. Only of subjects up to the first difference.
        """
        if part.keeps is None:
            return
        first = math.inf
        for offset, subject in sorted(book.unexplained()):
            if offset > first:
                return
            seq = book.stored_before(offset) if book.is_compacted else last_seq
            for _ in range(part.keeps):  # so many explain everything
                found = await self._sides.next_message(part, subject, seq + 1)
                if found is None:
                    break
                seq = found.seq
                source = self._mapping.source_in(found.headers)
                mark = None if source is None else self._kafka.marks.get(source.kafka_partition)
                is_other = source is None or mark is None or source.offset >= mark.high
                known = self._others.setdefault(subject, [])
                if (is_other or book.is_left(seq)) and seq not in known:
                    bisect.insort(known, seq)
            left = book.first_unexplained(subject)
            first = first if left is None else min(first, left)

    async def _look_for_invented(self, parts: Sequence[Part]) -> None:
        """Of what only the stream has, find what Kafka's compaction did not remove.

        It may have since the proof began, for a newer record. A native tombstone that had come to
        Kafka may have gone from there; its message is among the others.
        """
        doubtful = [p for p, book in self._books.items() if book.not_compacted()]
        if not doubtful:
            return
        marks, now = self._kafka.marks, await self._sides.marks_now()
        since = {p: Watermarks(marks[p].high, now[p].high) for p in doubtful if p in now}
        async for records in self._sides.records(since):
            for record in records:
                self._books[record.kafka_partition].note(record)
        of = {p: part for part in parts for p in part.partitions}
        for p in doubtful:
            for offset, seq in self._books[p].not_compacted():
                found = await self._sides.next_message(of[p], of[p].filter, seq)
                if found is None or found.seq != seq:
                    continue  # it has been removed meanwhile
                if not any(at > seq for at in self._others.get(found.subject, ())):
                    self._books[p].invented_at = offset, seq
                    break

    async def _tell(
        self, parts: Sequence[Part], stored: AbcMapping[int, Side], found: Found
    ) -> None:
        """What the books have come to; ``stored``: the streams' sides."""
        look = CloserLook(self._kafka, self._limits, self._reader, parts)
        for p, book in sorted(self._books.items()):
            difference = found.differences.get(p) or await _first(look, p, book)
            found.apart.older += book.compacted
            found.expired[p] += book.expired
            if difference is not None:
                found.differences[p] = await self._kafka.beside(difference)
            found.sides[p] = book.kafka_side(), stored[p]


async def _first(look: CloserLook, partition: int, book: Newest) -> Difference | None:
    """The first difference of a partition, with both records where one changed."""
    found = book.difference(partition)
    if book.differs_at is None or (found is not None and found.offset < book.differs_at[0]):
        return found
    return await look.pair(partition, *book.differs_at)
