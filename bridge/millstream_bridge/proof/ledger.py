"""One side of a partition as hashes of blocks, so that a difference is located. Pure.

Blocks of 1,000 offsets are hashed: the parts of their records (see `parts`), then the lengths of
these and how many there are.
"""

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..model import Record, Watermarks
from .parts import Parts, lengths, parts_of
from .values import Difference, Side

BLOCK_OFFSETS: Final = 1_000


def _new_hash() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


@dataclass(slots=True)
class Ledger:
    """One side of one partition, filled in rising order of offsets.

    ``blocks`` holds a digest per block number, ``starts`` the place at which the stream's side of a
    block begins. `settle` lets go of the records themselves; call it now and then.
    """

    count: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    blocks: dict[int, bytes] = field(default_factory=dict)
    starts: dict[int, bytes] = field(default_factory=dict)
    _block: int = -1
    _end: int = -1
    _parts: list[bytes] = field(default_factory=list)
    _lengths: list[bytes] = field(default_factory=list)
    _hash: "hashlib.blake2b" = field(default_factory=_new_hash)

    def add(self, offset: int, parts: Parts, place: bytes = b"") -> None:
        """The next record; ``place`` is the ack subject of its message."""
        self.add_all([offset], [parts], [place])

    def add_all(
        self, offsets: Sequence[int], parts: Sequence[Parts], places: Sequence[bytes] = ()
    ) -> None:
        """The next records, one or more."""
        start, count = 0, len(offsets)
        while start < count:
            if offsets[start] >= self._end:
                self._open_block(offsets[start], places[start] if places else b"")
            end = count
            if offsets[-1] >= self._end:
                end = bisect.bisect_left(offsets, self._end, start)
            self._parts += itertools.chain.from_iterable(parts[start:end])
            start = end
        self.count += count
        self.last_offset = offsets[-1]

    def settle(self) -> None:
        """Hash what was added."""
        if self._parts:
            self._hash.update(b"".join(self._parts))
            self._lengths.append(lengths(self._parts))
            self._parts.clear()

    def side(self) -> Side:
        """The finished side."""
        self._close_block()
        whole = _new_hash()
        for block, digest in self.blocks.items():
            whole.update(b"%d " % block + digest)
        return Side(
            count=self.count,
            first_offset=self.first_offset,
            last_offset=self.last_offset,
            digest=whole.hexdigest(),
        )

    def _open_block(self, offset: int, place: bytes) -> None:
        self._close_block()
        self._block = offset // BLOCK_OFFSETS
        self._end = (self._block + 1) * BLOCK_OFFSETS
        self.starts[self._block] = place
        if self.first_offset is None:
            self.first_offset = offset

    def _close_block(self) -> None:
        self.settle()
        if self._lengths:
            ends = b"".join(self._lengths)
            self._hash.update(ends + len(ends).to_bytes(8, "big"))
            self.blocks[self._block] = self._hash.digest()
            self._lengths.clear()
            self._hash = _new_hash()


def block_bounds(number: int, bounds: Watermarks) -> Watermarks:
    """The offsets of a block between the bounds."""
    low, high = number * BLOCK_OFFSETS, (number + 1) * BLOCK_OFFSETS
    return Watermarks(max(low, bounds.low), min(high, bounds.high))


def different_blocks(kafka: Ledger, nats: Ledger) -> list[int]:
    """The blocks that are not the same on both sides, in order; call after `Ledger.side`."""
    numbers = sorted(kafka.blocks.keys() | nats.blocks.keys())
    return [n for n in numbers if kafka.blocks.get(n) != nats.blocks.get(n)]


def compare(
    kafka_partition: int, kafka: Iterable[Record], nats: Iterable[tuple[int, Record]]
) -> Difference | None:
    """The first difference between the records of a block on both sides, both in rising order."""
    stored = {record.offset: (seq, record) for seq, record in nats}
    for record in kafka:
        seq, other = stored.pop(record.offset, (None, None))
        if other is None or seq is None:
            return Difference(
                kafka_partition=kafka_partition,
                offset=record.offset,
                seq=None,
                what="the stream does not have this record",
                kafka=record,
            )
        if (difference := different(kafka_partition, record, seq, other)) is not None:
            return difference
    for offset, (seq, record) in sorted(stored.items()):
        return Difference(
            kafka_partition=kafka_partition,
            offset=offset,
            seq=seq,
            what="the stream has a record that Kafka does not have",
            nats=record,
        )
    return None


def different(kafka_partition: int, kafka: Record, seq: int, nats: Record) -> Difference | None:
    """How two records of one offset differ, None if they do not."""
    if parts_of(kafka) == parts_of(nats):
        return None
    names = [
        name
        for name in ("key", "value", "headers", "timestamp_ms", "timestamp_type")
        if getattr(kafka, name) != getattr(nats, name)
    ]
    return Difference(
        kafka_partition=kafka_partition,
        offset=kafka.offset,
        seq=seq,
        what=f"different {' and '.join(names)}",
        kafka=kafka,
        nats=nats,
    )
