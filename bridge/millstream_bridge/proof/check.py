"""The comparison itself: in full, of a sample, or of what came since the last time.

For every partition the records between two offsets are read from Kafka, and those with the same
offsets from the stream, at the same time. Blocks of 1,000 offsets are hashed on both sides
(`ledger`); where a block differs it alone is read again and compared record by record, so the first
difference has an offset, a sequence, and both records.

Where a side need not have every record (a compacted topic, a stream that keeps the newest messages
per subject) each record of the stream is remembered instead, and what is missing is explained or
told (`newest`).

What the stream's own limits removed is counted. They remove the oldest messages, also while these
are read: so what is missing is looked at again once all is read. Below a partition's first record
of then it may have been removed, from there on nothing was.
"""

import asyncio
import bisect
import itertools
import math
import operator
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping as AbcMapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import BridgeError, ConfigurationError
from ..jetstream.connection import Delivery
from ..jetstream.reader import sequence
from ..jetstream.stream import GAPS
from ..model import Positions, Record, Watermarks
from ..records.chunks import reference_in
from ..records.headers import ORIGIN_HEADER, HeaderError
from ..records.mapping import Mapping
from ..records.origin import returned
from ..records.poison import mark_in
from .decode import Decoder
from .ledger import BLOCK_OFFSETS, Ledger, compare, different, different_blocks
from .newest import Newest
from .parts import Parts, parts_of, parts_of_all, record_of
from .returns import Last, Returns
from .sides import Bounds, Part, Sides
from .stream_side import Book, StreamSide
from .values import Apart, Difference, PartitionProof, Proof, Side

_PARTITION: Final = operator.itemgetter(0)
_STEPS: Final = 16
"""So many messages without a source are asked for one by one before they are read in a row."""


@dataclass(slots=True)
class _Collected:
    """A `Book` that keeps the records, for blocks that are compared one by one."""

    kafka_partition: int
    records: list[tuple[int, Record]] = field(default_factory=list)

    def add(self, _: int, parts: Parts, place: bytes) -> None:
        self.records.append((sequence(place), record_of(self.kafka_partition, parts)))

    def add_all(self, offsets: Sequence[int], parts: Sequence[Parts], places: list[bytes]) -> None:
        for it in zip(offsets, parts, places, strict=True):
            self.add(*it)


@dataclass(slots=True)
class Seen:
    """What the rounds before have seen.

    ``next_seqs``: per stream, before which sequence all is read. ``read_to``: per partition, to
    which sequence, and below which offset all was compared. ``returned``: per partition the last
    record that came back from NATS.
    """

    next_seqs: dict[str, int] = field(default_factory=dict)
    read_to: dict[int, tuple[int, int]] = field(default_factory=dict)
    returned: dict[int, Last] = field(default_factory=dict)

    def bounds(self, marks: Bounds, goal: Positions) -> Bounds:
        """What is new up to the goal; of a partition it does not know, nothing."""
        found = {}
        for p, mark in marks.items():
            low = max(mark.low, self.read_to[p][1] if p in self.read_to else 0)
            found[p] = Watermarks(low, max(low, goal.get(p, low)))
        return found


class Check:
    """The readings of both sides, and the closer look at what differs."""

    def __init__(self, sides: Sides, mapping: Mapping) -> None:
        self.marks = sides.marks
        self._seen = Seen()
        self._sides = sides
        self._mapping = mapping
        self._is_dense = mapping.route.mode == "dense"
        self._ttl_s = mapping.route.tombstone_ttl_s
        self._started = time.monotonic()
        self._apart = Apart()
        self._absent: set[tuple[int, int]] = set()
        self._reached: dict[int, int] = {}
        """One past what was stored of a partition before `_look`, where that may be gone."""
        self._expired: Counter[int] = Counter()
        self._returns = Returns(sides, mapping, self._seen.returned)
        self._never_stored: dict[int, Difference] = {}

    # the three modes

    async def full(self) -> Proof:
        """Everything between the marks."""
        marks = self.marks
        parts = await self._look(marks)
        if self._loses(parts):
            return await self._newest(marks, parts, is_compacted=await self._sides.is_compacted())
        proof = await self._all(marks, parts)
        if not proof.equal and await self._sides.is_compacted():
            self._apart, self._expired = Apart(), Counter()
            return await self._newest(marks, parts, is_compacted=True)
        return proof

    async def round(self, goal: Positions, seen: Seen) -> Proof:
        """Everything below the goal, but for what the rounds before have seen; noted there."""
        self._seen, self._returns.last = seen, seen.returned
        bounds = seen.bounds(self.marks, goal)
        parts = await self._look(bounds)
        self._refuse_loss(parts)
        proof = await self._all(bounds, parts, mode="online")
        await self._refuse_compacted(proof)
        return proof

    async def sample(self, blocks_max: int, chance: random.Random) -> Proof:
        """Some blocks of each partition."""
        marks = self.marks
        parts = await self._look(marks)
        self._refuse_loss(parts)
        await self._read_marks(parts)
        marks = await self._unexpired(marks, parts)
        chosen = {p: _choose(marks[p], blocks_max, chance) for p in sorted(marks)}
        kafka = {p: Ledger() for p in marks}
        nats = {p: Ledger() for p in marks}
        differences: dict[int, Difference] = {}
        for place in range(max(map(len, chosen.values()), default=0)):
            bounds = {
                p: _block_bounds(blocks[place], marks[p])
                for p, blocks in chosen.items()
                if place < len(blocks) and p not in differences
            }
            found = await self._blocks(bounds, {p: part for part in parts for p in part.partitions})
            for p, (records, stored, difference) in found.items():
                for record in records:
                    kafka[p].add(record.offset, parts_of(record))
                for _, record in stored:
                    nats[p].add(record.offset, parts_of(record))
                if difference is not None:
                    differences[p] = difference
        sides = {p: (kafka[p].side(), nats[p].side()) for p in marks}
        for p in sides.keys() - differences.keys():
            sides[p] = self._without_removed(p, *sides[p])
        proof = await self._proof(sides, differences, "sample")
        await self._refuse_compacted(proof)
        return proof

    def _loses(self, parts: Sequence[Part]) -> bool:
        """Whether a stream removes records from among others."""
        return self._ttl_s is not None or any(part.keeps is not None for part in parts)

    def _refuse_loss(self, parts: Sequence[Part]) -> None:
        if self._loses(parts):
            raise ConfigurationError(
                f"stream {parts[0].stream} does not keep all messages (max_msgs_per_subject,"
                " tombstone_ttl_s): it can only be verified in full"
            )

    async def _refuse_compacted(self, proof: Proof) -> None:
        """What only the stream has, Kafka may have removed."""
        if not proof.equal and await self._sides.is_compacted():
            raise ConfigurationError(
                f"topic {proof.topic} is compacted, so the stream may have more than it has:"
                " it can only be verified in full"
            )

    # reading

    async def _look(self, bounds: Bounds) -> list[Part]:
        """The streams as they are now.

        Where their limits remove records, how far each partition was is asked before: of one of
        which nothing is left, what is stored later is not taken for removed.
        """
        parts = await self._sides.parts(bounds)
        removing = [part for part in parts if part.expires or self._ttl_s is not None]
        for part in removing:
            for p in part.partitions:
                with suppress(ConfigurationError):  # asked again, should it matter
                    self._reached[p] = await self._sides.reached(part, p) or 0
        if removing:
            parts = await self._sides.parts(bounds)
        self._returns.parts = {p: part for part in parts for p in part.partitions}
        return parts

    async def _stored_below(self, part: Part, partition: int) -> int:
        """One past what was stored of a partition when the streams were looked at."""
        if partition not in self._reached:
            self._reached[partition] = await self._sides.reached(part, partition) or 0
        return self._reached[partition]

    async def _removed_below(self, part: Part, partition: int) -> int:
        """Below it the limits of a stream, as it is now, may have removed records; 0: nowhere."""
        if not part.expires:
            return 0
        seq, first = await self._next(partition, part.info.first_seq, part)
        if first is None:
            return await self._stored_below(part, partition)
        return first + await self._has_lost_pieces(part, partition, seq)

    async def _has_lost_pieces(self, part: Part, partition: int, seq: int) -> bool:
        """Whether a large record's first piece is gone: it is older, so limits remove it before."""
        if self._mapping.route.large != "chunks":
            return False
        found = await self._sides.next_message(part, part.filter, seq)
        try:
            reference = None if found is None or found.seq != seq else reference_in(found.headers)
        except ValueError:
            return False  # it is damaged, which no limit does
        if reference is None or not reference.chunks:
            return False
        first_seq = seq - reference.chunks
        pieces = f"{self._mapping.chunk_subject(partition)}.>"
        piece = await self._sides.next_message(part, pieces, first_seq)
        return piece is None or piece.seq != first_seq

    def _without_removed(self, partition: int, kafka: Side, nats: Side) -> tuple[Side, Side]:
        """Both sides of an equal partition, and what only Kafka still has counted as removed."""
        if kafka == nats:
            return kafka, nats
        self._expired[partition] += kafka.count - nats.count
        return replace(kafka, digest=""), nats

    async def _all(
        self,
        bounds: Bounds,
        parts: Sequence[Part],
        mode: str = "full",
    ) -> Proof:
        await self._read_marks(parts)
        bounds = await self._unexpired(bounds, parts)
        kafka = {p: Ledger() for p in bounds}
        nats = {p: Ledger() for p in bounds}
        seen = self._seen
        sides = [
            self._side(part, {p: bounds[p] for p in part.partitions}, nats, seen=seen.read_to)
            for part in parts
        ]
        streams = self._read_streams(zip(parts, sides, strict=True), nats)
        await _both(streams, self._read_kafka(bounds, kafka))
        differences: dict[int, Difference] = {}
        for part, side in zip(parts, sides, strict=True):
            self._apart.add(side.apart)
            differences |= side.differences
            last_seq = part.info.last_seq
            seen.next_seqs[part.stream] = side.first_beyond or last_seq + 1
            seen.read_to |= {p: (last_seq, bounds[p].high) for p in part.partitions}
        of = {p: part for part in parts for p in part.partitions}
        finished = {p: (kafka[p].side(), nats[p].side()) for p in sorted(bounds)}
        for p, (ours, theirs) in finished.items():
            if p in differences:
                differences[p] = await self._with_kafka(differences[p])
            elif ours != theirs:
                found = await self._locate(p, kafka[p], nats[p], bounds[p], of[p])
                if found is not None:
                    differences[p] = found
                else:
                    finished[p] = self._without_removed(p, ours, theirs)
        differences = await self._behind_the_end(sides) | differences
        return await self._proof(finished, differences, mode)

    async def _newest(self, marks: Bounds, parts: Sequence[Part], *, is_compacted: bool) -> Proof:
        await self._read_marks(parts)
        marks = await self._unexpired(marks, parts)
        others: dict[str, list[int]] = {}
        books = {
            p: Newest(part.keeps, is_compacted, others) for part in parts for p in part.partitions
        }
        sides = [
            self._side(part, {p: marks[p] for p in part.partitions}, books, others=others)
            for part in parts
        ]
        differences: dict[int, Difference] = {}
        read_to = []
        for part, side in zip(parts, sides, strict=True):
            last_seq = await self._read_stream(part, side, 1)
            # What a bridge at work has stored since may have pushed out what was not read yet.
            later = await self._sides.again(part)
            read_to.append(await self._read_stream(later, side, last_seq + 1))
            self._apart.add(side.apart)
            differences |= side.differences
        stored = {p: book.side() for p, book in books.items()}
        now = [await self._sides.again(part) for part in parts]
        for part in now:
            await self._note_removed(part, books)
        async for records in self._sides.records(marks):
            for record in records:
                books[record.kafka_partition].note(record)
            for record in self._of_kafka(records):
                books[record.kafka_partition].compare(record, self._mapping.subject(record))
            await self._compare_returns()
        for part, last_seq in zip(now, read_to, strict=True):
            for p in part.partitions:
                await self._look_for_newer(part, books[p], last_seq, others)
        of = {p: part for part in now for p in part.partitions}
        await self._look_for_invented(books, of, others)
        finished = {}
        for p, book in sorted(books.items()):
            found = differences.get(p) or await self._first(p, book, of[p])
            self._apart.older += book.compacted
            self._expired[p] += book.expired
            if found is not None:
                differences[p] = found if found.kafka else await self._with_kafka(found)
            finished[p] = book.kafka_side(), stored[p]
        differences = await self._behind_the_end(sides) | differences
        return await self._proof(finished, differences, "full")

    async def _first(self, partition: int, book: Newest, part: Part) -> Difference | None:
        """The first difference of a partition, with both records where one changed."""
        found = book.difference(partition)
        if book.differs_at is None or (found is not None and found.offset < book.differs_at[0]):
            return found
        return await self._pair(partition, *book.differs_at, part)

    async def _look_for_newer(
        self, part: Part, book: Newest, last_seq: int, others: dict[str, list[int]]
    ) -> None:
        """Note in ``others`` what came behind the sequence to which a stream was read.

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
                mark = None if source is None else self.marks.get(source.kafka_partition)
                is_other = source is None or mark is None or source.offset >= mark.high
                known = others.setdefault(subject, [])
                if (is_other or book.is_left(seq)) and seq not in known:
                    bisect.insort(known, seq)
            left = book.first_unexplained(subject)
            first = first if left is None else min(first, left)

    async def _look_for_invented(
        self,
        books: AbcMapping[int, Newest],
        of: AbcMapping[int, Part],
        others: AbcMapping[str, Sequence[int]],
    ) -> None:
        """Of what only the stream has, find what Kafka's compaction did not remove.

        It may have since the proof began, for a newer record. A native tombstone that had come to
        Kafka may have gone from there; its message is among the ``others``.
        """
        doubtful = [p for p, book in books.items() if book.not_compacted()]
        if not doubtful:
            return
        now = await self._sides.marks_now()
        since = {p: Watermarks(self.marks[p].high, now[p].high) for p in doubtful if p in now}
        async for records in self._sides.records(since):
            for record in records:
                books[record.kafka_partition].note(record)
        for p in doubtful:
            for offset, seq in books[p].not_compacted():
                found = await self._sides.next_message(of[p], of[p].filter, seq)
                if found is None or found.seq != seq:
                    continue  # it has been removed meanwhile
                if not any(at > seq for at in others.get(found.subject, ())):
                    books[p].invented_at = offset, seq
                    break

    def _side(
        self, part: Part, bounds: Bounds, books: AbcMapping[int, Book], **more: Any
    ) -> StreamSide:
        """``more``: ``seen``, ``others``."""
        has_gaps = GAPS in (part.info.config.get("metadata") or {})
        is_dense = self._is_dense and not has_gaps
        return StreamSide(self._mapping, bounds, books, is_dense=is_dense, **more)

    async def _behind_the_end(self, sides: Iterable[StreamSide]) -> dict[int, Difference]:
        """Stored records that Kafka does not have, since its log ends before: as it is now.

        Also of those that a round before has compared, when Kafka had them.
        """
        beyond = {p: place for side in sides for p, place in side.beyond.items()}
        fallen = {
            p: below
            for p, (_, below) in self._seen.read_to.items()
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

    async def _note_removed(self, part: Part, books: AbcMapping[int, Newest]) -> None:
        """What may have been removed of a stream, as it is when all was read, or was not moved."""
        ttl_s, info = self._ttl_s, part.info
        for p in part.partitions:
            books[p].marked = {offset for of, offset in self._absent if of == p}
            books[p].removed_below = await self._removed_below(part, p)
            if ttl_s is not None and info.age_s > ttl_s:
                before_ns = info.now_ns - ttl_s * 1e9 if info.now_ns else math.inf
                books[p].tombstones_expire(before_ns, await self._stored_below(part, p))

    async def _read_streams(
        self,
        sides: Iterable[tuple[Part, StreamSide]],
        ledgers: AbcMapping[int, Ledger],
    ) -> None:
        """Two at a time: each has megabytes on their way, and of one alone is much waiting."""
        left = iter(sides)

        async def read() -> None:
            for part, side in left:
                own = [ledgers[p] for p in part.partitions]
                await self._read_stream(part, side, self._seen.next_seqs.get(part.stream, 1), own)

        await _both(read(), read())

    async def _read_stream(
        self, part: Part, side: StreamSide, first_seq: int, ledgers: Iterable[Ledger] = ()
    ) -> int:
        """Gives the sequence to which it has read, which may be behind what was the end."""
        read_to = max(first_seq - 1, part.info.last_seq)
        async for batch in self._sides.messages(part, part.filter, first_seq):
            await self._feed(side, part, batch)
            for ledger in ledgers:
                ledger.settle()
            read_to = max(read_to, sequence(batch[-1][0]))
            await asyncio.sleep(0)  # Kafka's side is read meanwhile
        return read_to

    async def _feed(self, side: StreamSide, part: Part, batch: list[Delivery]) -> None:
        """Hand messages to a side; large ones are put together first."""
        at = 0
        while (at := side.add_all(batch, at)) < len(batch):
            ack, subject, block, payload = batch[at]
            at += 1
            headers = Decoder.lines(block)
            source = self._mapping.source_in(headers)
            try:
                whole, payload = await self._sides.whole(part, sequence(ack), headers, payload)
            except ValueError as error:
                if source is None:
                    continue
                p, offset = source.kafka_partition, source.offset
                # Its pieces may have been removed since, or a moment ago.
                removed_below = await self._removed_below(await self._sides.again(part), p)
                why = "" if offset < removed_below else str(error)
                side.add_damaged(ack, subject, p, offset, why)
                continue
            side.add(ack, subject.decode("utf-8", "replace"), list(whole), payload)

    async def _read_marks(self, parts: Sequence[Part]) -> None:
        """What the bridge noted as parked or skipped."""
        for part in parts:
            token = part.partitions[0] if self._is_dense else "*"
            subject = f"{self._mapping.poison_subject(token)}.*"
            async for batch in self._sides.messages(part, subject, 1):
                for _, _, block, _ in batch:
                    try:
                        mark = mark_in(Decoder.lines(block))
                    except HeaderError:
                        continue  # it is damaged: the record that it stands for is missing
                    if mark is None or mark.source.topic != self._mapping.route.topic:
                        continue
                    self._absent.add((mark.source.kafka_partition, mark.source.offset))
                    self._apart.parked += mark.fate == "parked"
                    self._apart.skipped += mark.fate == "skipped"

    async def _read_kafka(self, bounds: Bounds, ledgers: AbcMapping[int, Ledger]) -> None:
        async for records in self._sides.records(bounds):
            wanted = [*self._of_kafka(records)]
            offsets, parts = [it[1] for it in wanted], parts_of_all(wanted)
            start = 0
            for p, run in itertools.groupby(wanted, _PARTITION):
                end = start + sum(1 for _ in run)
                ledgers[p].add_all(offsets[start:end], parts[start:end])
                ledgers[p].settle()
                start = end
            await self._compare_returns()

    def _of_kafka(self, records: Sequence[Record]) -> Iterable[Record]:
        """Records that should be in the stream."""
        name, absent = self._mapping.route.name, self._absent
        for record in records:
            headers = record.headers
            is_marked = headers and headers[0][0] == ORIGIN_HEADER
            if is_marked and (origin := returned(headers, name)) is not None:
                self._returns.note(record, origin)
            elif not absent or (record.kafka_partition, record.offset) not in absent:
                yield record

    async def _compare_returns(self) -> None:
        if self._returns.is_full:
            await self._returns.compare()

    async def _unexpired(self, bounds: Bounds, parts: Sequence[Part]) -> Bounds:
        """The bounds without what the streams' own limits have removed by now, which is counted.

        Of a partition of which nothing is left, that is all that was stored, and no more.
        """
        kept = dict(bounds)
        for part in parts:
            gone = {}
            for p in part.partitions if part.expires else ():
                low, high = bounds[p]
                low = min(max(await self._removed_below(part, p), low), high)
                gone[p] = Watermarks(bounds[p].low, low)
                kept[p] = Watermarks(low, high)
            await self._note_expired(part, gone)
        return kept

    async def _note_expired(self, part: Part, gone: Bounds) -> None:
        """Count what a stream's limits may have removed: each record was a message that is gone.

        If there are more of them than such messages, some were never stored.
        """
        counts = {p: it.high - it.low for p, it in gone.items() if it.high > it.low}
        if not counts:
            return
        newest: dict[int, Record] = {}
        if sum(counts.values()) > part.gone:
            counts = dict.fromkeys(gone, 0)
            async for records in self._sides.records(gone):
                for record in self._of_kafka(records):
                    counts[record.kafka_partition] += 1
                    newest[record.kafka_partition] = record
                await self._compare_returns()
            part = await self._sides.again(part)
        self._expired.update(counts)
        if sum(counts.values()) > part.gone:
            p = max(newest, key=lambda p: counts[p])
            self._never_stored[p] = Difference(
                kafka_partition=p,
                offset=newest[p].offset,
                seq=None,
                what=f"the stream lacks {sum(counts.values())} records before its first ones, this"
                f" among them, and only {part.gone} messages were ever removed from it",
                kafka=newest[p],
            )

    # the closer look

    async def _locate(
        self, partition: int, kafka: Ledger, nats: Ledger, bounds: Watermarks, part: Part
    ) -> Difference | None:
        """The first difference; None: only what was removed while it was read is missing."""
        removed_below = await self._removed_below(await self._sides.again(part), partition)
        for number in different_blocks(kafka, nats):
            block = _block_bounds(number, bounds)
            if block.high <= removed_below:
                continue
            below = [sequence(ack) for it, ack in nats.starts.items() if it <= number]
            found = await self._blocks({partition: block}, {partition: part}, max(below, default=1))
            difference = found[partition][2]
            if difference is None and block.low >= removed_below:
                difference = Difference(
                    kafka_partition=partition,
                    offset=block.low,
                    seq=sequence(nats.starts[number]) if number in nats.starts else None,
                    what="a block differed and no longer does: somebody changes one of the sides",
                )
            if difference is not None:
                return difference
        return None

    async def _blocks(
        self, bounds: Bounds, parts: AbcMapping[int, Part], first_seq: int | None = None
    ) -> dict[int, tuple[list[Record], list[tuple[int, Record]], Difference | None]]:
        """One block of each partition: Kafka's records, the stream's, and how they differ."""
        kafka: dict[int, list[Record]] = {p: [] for p in bounds}
        async for records in self._sides.records(bounds):
            for record in self._of_kafka(records):
                kafka[record.kafka_partition].append(record)
            await self._compare_returns()
        found = {}
        for p, block in bounds.items():
            stored, difference = await self._block(p, block, parts[p], first_seq)
            if difference is None:
                difference = await self._compare(p, kafka[p], stored, parts[p])
            else:
                difference = await self._with_kafka(difference)
            found[p] = kafka[p], stored, difference
        return found

    async def _compare(
        self, partition: int, kafka: list[Record], stored: list[tuple[int, Record]], part: Part
    ) -> Difference | None:
        """The first difference of a block but for what the stream's limits have removed by now."""
        difference = compare(partition, kafka, stored)
        if difference is None or difference.seq is not None:
            return difference
        removed_below = await self._removed_below(await self._sides.again(part), partition)
        if difference.offset >= removed_below:
            return difference
        there = {record.offset for _, record in stored}
        kept = [it for it in kafka if it.offset >= removed_below or it.offset in there]
        return compare(partition, kept, stored)

    async def _block(
        self, partition: int, block: Watermarks, part: Part, first_seq: int | None
    ) -> tuple[list[tuple[int, Record]], Difference | None]:
        book = _Collected(partition)
        side = self._side(part, {partition: block}, {partition: book})
        if first_seq is None:
            first_seq = await self._bisect(partition, block.low, part)
        subject = self._mapping.partition_filter(partition)
        async with aclosing(self._sides.messages(part, subject, first_seq)) as batches:
            async for batch in batches:
                await self._feed(side, part, batch)
                if side.first_beyond is not None:
                    break
        return book.records, side.differences.get(partition)

    async def _bisect(self, partition: int, offset: int, part: Part) -> int:
        """The first sequence at which the partition's offset is ``offset`` or more."""
        low, high = part.info.first_seq, part.info.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            seq, at = await self._next(partition, middle, part)
            if at is None or seq >= high or at >= offset:
                high = middle
            else:
                low = seq + 1
        return low

    async def _next(self, partition: int, seq: int, part: Part) -> tuple[int, int | None]:
        """Sequence and offset of the partition's first record at a sequence or later."""
        subject = self._mapping.partition_filter(partition)
        for _ in range(_STEPS):
            found = await self._sides.next_message(part, subject, seq)
            if found is None:
                return seq, None
            source = self._mapping.source_in(found.headers)
            if source is not None:
                return found.seq, source.offset
            seq = found.seq + 1
        async with aclosing(self._sides.messages(part, subject, seq)) as batches:
            async for batch in batches:
                for ack, _, block, _ in batch:
                    source = self._mapping.source_in(Decoder.lines(block))
                    if source is not None:
                        return sequence(ack), source.offset
        return seq, None

    async def _with_kafka(self, difference: Difference) -> Difference:
        """The difference with Kafka's record beside the stream's, if Kafka has it."""
        p, offset = difference.kafka_partition, difference.offset
        try:
            async for records in self._sides.records({p: Watermarks(offset, offset + 1)}):
                return Difference(
                    kafka_partition=p,
                    offset=offset,
                    seq=difference.seq,
                    what=difference.what,
                    kafka=records[0],
                    nats=difference.nats,
                )
        except BridgeError:
            pass  # it has gone from Kafka: what is known is told
        return difference

    async def _pair(self, partition: int, offset: int, seq: int, part: Part) -> Difference:
        """The difference of one record that was on both sides."""
        block = Watermarks(offset, offset + 1)
        stored, _ = await self._block(partition, block, part, seq)
        async for records in self._sides.records({partition: block}):
            for at, record in stored:
                if (found := different(partition, records[0], at, record)) is not None:
                    return found
        what = "the two records differed, and one is gone or no longer does"
        return Difference(kafka_partition=partition, offset=offset, seq=seq, what=what)

    async def _proof(
        self,
        sides: AbcMapping[int, tuple[Side, Side]],
        differences: AbcMapping[int, Difference],
        mode: str,
    ) -> Proof:
        await self._returns.compare()
        partitions = {}
        differences = {**self._returns.differences, **differences, **self._never_stored}
        for p in sorted(sides.keys() | differences.keys()):
            kafka, nats = sides.get(p, (Side(), Side()))
            partitions[p] = PartitionProof(
                kafka=kafka, nats=nats, expired=self._expired[p], difference=differences.get(p)
            )
        self._apart.expired = self._expired.total()
        self._apart.returned, self._apart.unpaired = self._returns.count, self._returns.unpaired
        return Proof(
            topic=self._mapping.route.topic,
            stream=self._mapping.route.stream,
            mode=mode,
            partitions=partitions,
            apart=self._apart,
            seconds=time.monotonic() - self._started,
        )


async def _both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Both at the same time; the first error ends the other too."""
    tasks = [asyncio.create_task(one), asyncio.create_task(other)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _block_bounds(number: int, mark: Watermarks) -> Watermarks:
    low, high = number * BLOCK_OFFSETS, (number + 1) * BLOCK_OFFSETS
    return Watermarks(max(low, mark.low), min(high, mark.high))


def _choose(mark: Watermarks, blocks_max: int, chance: random.Random) -> list[int]:
    """The first block, the last, and some between, in rising order."""
    if mark.high <= mark.low:
        return []
    first, last = mark.low // BLOCK_OFFSETS, (mark.high - 1) // BLOCK_OFFSETS
    between = range(first + 1, last)
    chosen = chance.sample(between, min(blocks_max, len(between)))
    return sorted({first, last, *chosen})
