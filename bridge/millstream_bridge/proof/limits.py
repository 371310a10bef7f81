"""What the streams' own limits removed.

They remove the oldest messages: below a partition's first record anything may have been removed,
from there on nothing was. Of a partition of which nothing is left, that is all that was stored when
the proof began.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from ..errors import ConfigurationError
from ..model import Record, Watermarks
from ..records.chunks import reference_in
from ..records.mapping import Mapping
from .kafka_side import KafkaSide
from .places import Places
from .sides import Bounds, Part, Sides
from .values import Difference


class Limits:
    """Tells what may have been removed from what never was stored.

    ``never_stored``: records that are said to have been removed, and cannot all have been.
    """

    def __init__(self, sides: Sides, mapping: Mapping, kafka: KafkaSide) -> None:
        self.never_stored: dict[int, Difference] = {}
        self._sides = sides
        self._mapping = mapping
        self._kafka = kafka
        self._places = Places(sides, mapping)
        self._reached: dict[int, int] = {}
        """One past what was stored of a partition before `look`, where that may be gone."""

    async def look(self, bounds: Bounds) -> list[Part]:
        """The streams as they are now.

        Where their limits remove records, how far each partition was is asked before: of one of
        which nothing is left, what is stored later is not taken for removed.
        """
        parts = await self._sides.parts(bounds)
        has_ttl = self._mapping.route.tombstone_ttl_s is not None
        removing = [part for part in parts if part.expires or has_ttl]
        for part in removing:
            for p in part.partitions:
                with suppress(ConfigurationError):  # asked again, should it matter
                    self._reached[p] = await self._sides.reached(part, p) or 0
        return await self._sides.parts(bounds) if removing else parts

    async def stored_below(self, part: Part, partition: int) -> int:
        """One past what was stored of a partition when the streams were looked at."""
        if partition not in self._reached:
            self._reached[partition] = await self._sides.reached(part, partition) or 0
        return self._reached[partition]

    async def removed_below(self, part: Part, partition: int) -> int:
        """Below it the limits of a stream, as ``part`` is, may have removed records; 0: nowhere."""
        if not part.expires:
            return 0
        seq, first = await self._places.next_record(part, partition, part.info.first_seq)
        if first is None:
            return await self.stored_below(part, partition)
        return first + await self._has_lost_pieces(part, partition, seq)

    async def removed_below_now(self, part: Part, partition: int) -> int:
        """The same, of the stream as it is now."""
        return await self.removed_below(await self._sides.again(part), partition)

    async def unexpired(
        self, bounds: Bounds, parts: Sequence[Part]
    ) -> tuple[dict[int, Watermarks], Counter[int]]:
        """The bounds without what limits have removed by now, and how many records that were."""
        kept, expired = dict(bounds), Counter[int]()
        for part in parts:
            gone = {}
            for p in part.partitions if part.expires else ():
                low, high = bounds[p]
                low = min(max(await self.removed_below(part, p), low), high)
                gone[p] = Watermarks(bounds[p].low, low)
                kept[p] = Watermarks(low, high)
            expired.update(await self._count(part, gone))
        return kept, expired

    async def _count(self, part: Part, gone: Bounds) -> dict[int, int]:
        """What a stream's limits may have removed: each record was a message that is gone.

        If there are more of them than such messages, some were never stored.
        """
        counts = {p: it.high - it.low for p, it in gone.items() if it.high > it.low}
        if not counts or sum(counts.values()) <= part.gone:
            return counts
        counts = dict.fromkeys(gone, 0)
        newest: dict[int, Record] = {}
        async for _, wanted in self._kafka.batches(gone):
            for record in wanted:
                counts[record.kafka_partition] += 1
                newest[record.kafka_partition] = record
        part = await self._sides.again(part)
        if sum(counts.values()) > part.gone:
            p = max(newest, key=lambda p: counts[p])
            self.never_stored[p] = Difference(
                kafka_partition=p,
                offset=newest[p].offset,
                seq=None,
                what=f"the stream lacks {sum(counts.values())} records before its first ones, this"
                f" among them, and only {part.gone} messages were ever removed from it",
                kafka=newest[p],
            )
        return counts

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
