"""Two sides that need not have every record: compaction on either, a limit per subject. Pure.

A stream that keeps the newest messages per subject must have, of each subject, the newest ones that
Kafka has; Kafka's compaction may since have removed some that the stream still holds. Every record
that is on both sides must be the same. Unlike a `Ledger` this remembers a digest for each stored
record: about 150 bytes each.
"""

import hashlib
import math
from dataclasses import dataclass, field

from ..jetstream.consumer import place_of
from ..model import Record
from .parts import Parts, joined, parts_of
from .values import Difference, Side


@dataclass(slots=True)
class Newest:
    """The stream's records of a partition, then Kafka's against them.

    ``keeps``: how many messages per subject the stream holds, None for all. ``is_compacted``: Kafka
    removes records of keys that have a newer one. ``expired_below``: the stream may have removed
    records without a value below this offset, if they were stored before ``expired_before_ns``. A
    record that was stored later tells of all behind it that they were, too.
    """

    keeps: int | None
    is_compacted: bool
    expired_below: int = 0
    expired_before_ns: float = math.inf
    expired: int = 0
    _kafka_count: int = 0
    _kafka_first: int | None = None
    _kafka_last: int | None = None
    compacted: int = 0
    _stored: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    _found: dict[str, list[int]] = field(default_factory=dict)
    _missing: dict[str, list[int]] = field(default_factory=dict)
    _whole: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    _first: int | None = None
    _last: int | None = None
    differs_at: tuple[int, int] | None = None
    """Offset and sequence of the first record that is not the same on both sides."""

    def add(self, offset: int, parts: Parts, place: bytes) -> None:
        """The stream's next record."""
        digest = _digest(parts)
        at = place_of(place)
        self._stored[offset] = (at.seq, digest)
        if at.time_ns >= self.expired_before_ns and offset < self.expired_below:
            self.expired_below = offset
        self._whole.update(digest)
        self._first = offset if self._first is None else self._first
        self._last = offset

    def side(self) -> Side:
        """The stream's side; before Kafka's records are compared."""
        return Side(
            count=len(self._stored),
            first_offset=self._first,
            last_offset=self._last,
            digest=self._whole.hexdigest(),
        )

    def compare(self, record: Record, subject: str) -> None:
        """Kafka's next record, which goes under ``subject``."""
        self._kafka_count += 1
        self._kafka_first = record.offset if self._kafka_first is None else self._kafka_first
        self._kafka_last = record.offset
        stored = self._stored.pop(record.offset, None)
        if stored is None and record.value is None and record.offset < self.expired_below:
            self.expired += 1
            return
        if stored is None:
            self._missing.setdefault(subject, []).append(record.offset)
            return
        self._found.setdefault(subject, []).append(record.offset)
        seq, digest = stored
        if self.differs_at is None:
            is_equal = _digest(parts_of(record)) == digest
            self.differs_at = None if is_equal else (record.offset, seq)

    def kafka_side(self) -> Side:
        """Kafka's side, without a hash: it would be another one than the stream's."""
        return Side(
            count=self._kafka_count,
            first_offset=self._kafka_first,
            last_offset=self._kafka_last,
        )

    def difference(self, kafka_partition: int) -> Difference | None:
        """What cannot be explained, lowest offset first; a changed record is `differs_at`'s."""
        found: list[tuple[int, int | None, str]] = []
        for subject, offsets in self._missing.items():
            if (offset := self._unexplained(offsets, self._found.get(subject, []))) is not None:
                found.append((offset, None, "the stream does not have this record"))
        if self.is_compacted:
            self.compacted = len(self._stored)
        else:
            what = "the stream has a record that Kafka does not have"
            found += [(offset, seq, what) for offset, (seq, _) in self._stored.items()]
        if not found:
            return None
        offset, seq, what = min(found, key=lambda it: it[0])
        return Difference(kafka_partition=kafka_partition, offset=offset, seq=seq, what=what)

    def _unexplained(self, missing: list[int], found: list[int]) -> int | None:
        """The first missing offset that newer messages of its subject did not push out."""
        if self.keeps is None or len(found) < self.keeps:
            return missing[0]
        return next((it for it in missing if it > found[0]), None)


def _digest(parts: Parts) -> bytes:
    return hashlib.blake2b(joined(parts), digest_size=16).digest()
