"""One side of a partition as hashes of blocks, so that a difference is located. Pure.

Each record becomes one unambiguous string of bytes of everything it is (offset, timestamp and its
type, key, value, headers with order, repeats and nulls) and nothing of how it was moved: no
sequence, no session. Blocks of 1,000 offsets are hashed.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ..model import Record
from .values import Difference, Side

BLOCK_OFFSETS: Final = 1_000


def canonical(record: Record) -> bytes:
    """Everything a record is, as bytes that no other record has."""
    _, offset, timestamp_ms, kind, key, value, headers = record
    if not headers and key is not None and value is not None:
        return b"%d %d %b %d %d 0\n%b%b" % (
            *(offset, timestamp_ms, kind.encode(), len(key), len(value)),
            *(key, value),
        )
    head = (
        f"{offset} {timestamp_ms} {kind} {-1 if key is None else len(key)}"
        f" {-1 if value is None else len(value)} {len(headers)}\n"
    )
    parts = [head.encode("ascii"), key or b"", value or b""]
    for name, content in headers:
        text = name.encode("utf-8", "surrogatepass")
        parts.append(b"%d %d\n" % (len(text), -1 if content is None else len(content)))
        parts += (text, content or b"")
    return b"".join(parts)


@dataclass(slots=True)
class Ledger:
    """One side of one partition, filled in rising order of offsets.

    ``blocks`` holds a digest per block number, ``starts`` the sequence at which the stream's side
    of a block begins.
    """

    count: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    blocks: dict[int, bytes] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    _block: int = -1
    _parts: list[bytes] = field(default_factory=list)

    def add(self, record: Record, seq: int = 0) -> None:
        """The next record."""
        offset = record[1]
        block = offset // BLOCK_OFFSETS
        if block != self._block:
            self._close_block()
            self._block = block
            self.starts[block] = seq
            if self.first_offset is None:
                self.first_offset = offset
        self._parts.append(canonical(record))
        self.count += 1
        self.last_offset = offset

    def side(self) -> Side:
        """The finished side."""
        self._close_block()
        whole = hashlib.blake2b(digest_size=16)
        for block, digest in self.blocks.items():
            whole.update(b"%d " % block + digest)
        return Side(
            count=self.count,
            first_offset=self.first_offset,
            last_offset=self.last_offset,
            digest=whole.hexdigest(),
        )

    def _close_block(self) -> None:
        if self._parts:
            joined = b"".join(self._parts)
            self.blocks[self._block] = hashlib.blake2b(joined, digest_size=16).digest()
            self._parts = []


def first_different_block(kafka: Ledger, nats: Ledger) -> int | None:
    """The lowest block that is not the same on both sides; call after `Ledger.side`."""
    numbers = sorted(kafka.blocks.keys() | nats.blocks.keys())
    return next((n for n in numbers if kafka.blocks.get(n) != nats.blocks.get(n)), None)


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
    if canonical(kafka) == canonical(nats):
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
