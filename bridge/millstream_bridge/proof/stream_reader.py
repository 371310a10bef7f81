"""The streams' messages, read into a `StreamSide`; large records are put together on the way."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping as AbcMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ..jetstream.connection import Delivery
from ..jetstream.reader import sequence
from ..jetstream.stream import GAPS
from ..model import Record, Watermarks
from ..records.mapping import Mapping
from .decode import Decoder
from .ledger import Ledger
from .limits import Limits
from .parts import Parts, record_of
from .places import Places
from .sides import Bounds, Part, Sides
from .stream_side import Book, StreamSide
from .values import Difference


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


class StreamReader:
    """Reads whole streams, or a few records of a partition."""

    def __init__(self, sides: Sides, mapping: Mapping, limits: Limits) -> None:
        self._sides = sides
        self._mapping = mapping
        self._limits = limits
        self._places = Places(sides, mapping)

    def side(
        self,
        part: Part,
        bounds: Bounds,
        books: AbcMapping[int, Book],
        *,
        seen: AbcMapping[int, tuple[int, int]] | None = None,
        others: dict[str, list[int]] | None = None,
    ) -> StreamSide:
        """The side of one stream, of those of its partitions for which there are bounds."""
        own = {p: bounds[p] for p in part.partitions if p in bounds}
        has_gaps = GAPS in (part.info.config.get("metadata") or {})
        is_dense = self._mapping.route.mode == "dense" and not has_gaps
        return StreamSide(self._mapping, own, books, is_dense=is_dense, seen=seen, others=others)

    async def read_all(
        self,
        sides: Iterable[tuple[Part, StreamSide]],
        ledgers: AbcMapping[int, Ledger],
        next_seqs: AbcMapping[str, int],
    ) -> None:
        """Two at a time: each has megabytes on their way, and of one alone is much waiting."""
        left = iter(sides)

        async def read() -> None:
            for part, side in left:
                own = [ledgers[p] for p in part.partitions]
                await self.read(part, side, next_seqs.get(part.stream, 1), own)

        await both(read(), read())

    async def read(
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

    async def records(
        self, part: Part, partition: int, offsets: Watermarks, first_seq: int | None = None
    ) -> tuple[list[tuple[int, Record]], Difference | None]:
        """A partition's records between two offsets with their sequences, and what cannot be.

        ``first_seq``: from where on they are; without it the stream is searched for them.
        """
        book = _Collected(partition)
        side = self.side(part, {partition: offsets}, {partition: book})
        if first_seq is None:
            first_seq = await self._places.first_seq(part, partition, offsets.low)
        subject = self._mapping.partition_filter(partition)
        async with aclosing(self._sides.messages(part, subject, first_seq)) as batches:
            async for batch in batches:
                await self._feed(side, part, batch)
                if side.first_beyond is not None:
                    break
        return book.records, side.differences.get(partition)

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
                removed_below = await self._limits.removed_below_now(part, p)
                why = "" if offset < removed_below else str(error)
                side.add_damaged(ack, subject, p, offset, why)
                continue
            side.add(ack, subject.decode("utf-8", "replace"), list(whole), payload)


async def both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Both at the same time; the first error ends the other too."""
    tasks = [asyncio.create_task(one), asyncio.create_task(other)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
