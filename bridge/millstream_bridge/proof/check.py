"""The comparison itself: in full, of a sample, or of what came since the last time.

For every partition the records between two offsets are read from Kafka (`kafka_side`), and those
with the same offsets from the stream (`stream_reader`), at the same time. Blocks of 1,000 offsets
are hashed on both sides (`ledger`); where a block differs it alone is read again and compared
record by record (`closer_look`), so the first difference has an offset, a sequence, and both
records.

Where a side need not have every record (a compacted topic, a stream that keeps the newest messages
per subject) each record of the stream is remembered instead, and what is missing is explained or
told (`newest_check`).

What the stream's own limits removed is counted (`limits`). They remove the oldest messages, also
while these are read: so what is missing is looked at again once all is read.
"""

import random
import time
from collections.abc import Sequence

from ..errors import ConfigurationError
from ..model import Positions, Watermarks
from ..records.mapping import Mapping
from .closer_look import CloserLook
from .found import Found
from .kafka_side import KafkaSide
from .ledger import BLOCK_OFFSETS, Ledger, block_bounds
from .limits import Limits
from .newest_check import NewestCheck
from .parts import parts_of
from .seen import Seen
from .sides import Bounds, Part, Sides
from .stream_reader import StreamReader, both
from .values import PartitionProof, Proof, Side


class Check:
    """The three modes."""

    def __init__(self, sides: Sides, mapping: Mapping) -> None:
        self._sides = sides
        self._mapping = mapping
        self._kafka = KafkaSide(sides, mapping)
        self._limits = Limits(sides, mapping, self._kafka)
        self._reader = StreamReader(sides, mapping, self._limits)
        self._started = time.monotonic()

    async def full(self) -> Proof:
        """Everything between the marks."""
        marks = self._kafka.marks
        parts = await self._limits.look(marks)
        if self._loses(parts):
            return await self._newest(marks, parts, is_compacted=await self._sides.is_compacted())
        proof = await self._all(marks, parts, Seen(), "full")
        if not proof.equal and await self._sides.is_compacted():
            return await self._newest(marks, parts, is_compacted=True)
        return proof

    async def round(self, goal: Positions, seen: Seen) -> Proof:
        """Everything below the goal, but for what the rounds before have seen; noted there."""
        self._kafka.returns.last = seen.returned
        bounds = seen.bounds(self._kafka.marks, goal)
        parts = await self._limits.look(bounds)
        self._refuse_loss(parts)
        proof = await self._all(bounds, parts, seen, "online")
        await self._refuse_compacted(proof)
        return proof

    async def sample(self, blocks_max: int, chance: random.Random) -> Proof:
        """Some blocks of each partition."""
        marks = self._kafka.marks
        parts = await self._limits.look(marks)
        self._refuse_loss(parts)
        bounds, found = await self._begin(marks, parts)
        look = CloserLook(self._kafka, self._limits, self._reader, parts)
        chosen = {p: _choose(bounds[p], blocks_max, chance) for p in sorted(bounds)}
        kafka = {p: Ledger() for p in bounds}
        nats = {p: Ledger() for p in bounds}
        for place in range(max(map(len, chosen.values()), default=0)):
            offsets = {
                p: block_bounds(numbers[place], bounds[p])
                for p, numbers in chosen.items()
                if place < len(numbers) and p not in found.differences
            }
            for p, block in (await look.blocks(offsets)).items():
                for record in block.kafka:
                    kafka[p].add(record.offset, parts_of(record))
                for _, record in block.stored:
                    nats[p].add(record.offset, parts_of(record))
                if block.difference is not None:
                    found.differences[p] = block.difference
        for p in bounds:
            found.add_sides(p, kafka[p].side(), nats[p].side())
        proof = await self._proof(found, "sample")
        await self._refuse_compacted(proof)
        return proof

    def _loses(self, parts: Sequence[Part]) -> bool:
        """Whether a stream removes records from among others."""
        has_ttl = self._mapping.route.tombstone_ttl_s is not None
        return has_ttl or any(part.keeps is not None for part in parts)

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

    async def _begin(self, bounds: Bounds, parts: Sequence[Part]) -> tuple[Bounds, Found]:
        """What there is to compare: the bounds without what limits have removed by now."""
        apart = await self._kafka.learn(parts)
        bounds, expired = await self._limits.unexpired(bounds, parts)
        return bounds, Found(apart, expired)

    async def _all(self, bounds: Bounds, parts: Sequence[Part], seen: Seen, mode: str) -> Proof:
        """Both sides have every record."""
        bounds, found = await self._begin(bounds, parts)
        kafka = {p: Ledger() for p in bounds}
        nats = {p: Ledger() for p in bounds}
        sides = [self._reader.side(part, bounds, nats, seen=seen.read_to) for part in parts]
        streams = self._reader.read_all(zip(parts, sides, strict=True), nats, seen.next_seqs)
        await both(streams, self._kafka.read(bounds, kafka))
        for part, side in zip(parts, sides, strict=True):
            found.add(side)
            seen.note(part, side, bounds)
        look = CloserLook(self._kafka, self._limits, self._reader, parts)
        for p in sorted(bounds):
            ours, theirs = kafka[p].side(), nats[p].side()
            if p in found.differences:
                found.differences[p] = await self._kafka.beside(found.differences[p])
            elif ours != theirs:
                difference = await look.locate(p, kafka[p], nats[p], bounds[p])
                if difference is not None:
                    found.differences[p] = difference
            found.add_sides(p, ours, theirs)
        behind = await self._kafka.behind_the_end(sides, seen.read_to)
        found.differences = behind | found.differences
        return await self._proof(found, mode)

    async def _newest(self, bounds: Bounds, parts: Sequence[Part], *, is_compacted: bool) -> Proof:
        """A side keeps only the newest records."""
        bounds, found = await self._begin(bounds, parts)
        check = NewestCheck(self._sides, self._mapping, self._kafka, self._limits, self._reader)
        await check.compare(bounds, parts, found, is_compacted=is_compacted)
        return await self._proof(found, "full")

    async def _proof(self, found: Found, mode: str) -> Proof:
        returns, apart = self._kafka.returns, found.apart
        await returns.compare()
        differences = {**returns.differences, **found.differences, **self._limits.never_stored}
        partitions = {}
        for p in sorted(found.sides.keys() | differences.keys()):
            kafka, nats = found.sides.get(p, (Side(), Side()))
            partitions[p] = PartitionProof(
                kafka=kafka, nats=nats, expired=found.expired[p], difference=differences.get(p)
            )
        apart.expired = found.expired.total()
        apart.returned, apart.unpaired = returns.count, returns.unpaired
        return Proof(
            topic=self._mapping.route.topic,
            stream=self._mapping.route.stream,
            mode=mode,
            partitions=partitions,
            apart=apart,
            seconds=time.monotonic() - self._started,
        )


def _choose(mark: Watermarks, blocks_max: int, chance: random.Random) -> list[int]:
    """The first block, the last, and some between, in rising order."""
    if mark.high <= mark.low:
        return []
    first, last = mark.low // BLOCK_OFFSETS, (mark.high - 1) // BLOCK_OFFSETS
    between = range(first + 1, last)
    chosen = chance.sample(between, min(blocks_max, len(between)))
    return sorted({first, last, *chosen})
