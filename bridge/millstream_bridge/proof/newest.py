"""Two sides that need not have every record: compaction on either, a limit per subject. Pure.

A stream that keeps the newest messages per subject must have, of each subject, the newest ones that
Kafka has, but for those that other messages of the subject pushed out, native ones too; Kafka's
compaction may since have removed some that the stream still holds. Every record
that is on both sides must be the same. Unlike a `Ledger` this remembers a digest for each stored
record: about 170 bytes each.
"""

import bisect
import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..jetstream.consumer import place_of
from ..model import Record
from .parts import Parts, joined, parts_of
from .values import Difference, Side


@dataclass(slots=True)
class Newest:
    """The stream's records of a partition, then Kafka's against them.

    ``keeps``: how many messages per subject the stream holds, None for all. ``is_compacted``: Kafka
    removes records of keys that have a newer one. ``removed_below``: the stream's other limits may
    have removed records below this offset. ``others`` are the sequences of messages that are no
    records, or were behind Kafka's end when the proof began, in their order, by subject.
    """

    keeps: int | None
    is_compacted: bool
    others: Mapping[str, Sequence[int]] = field(default_factory=dict)
    removed_below: int = 0
    expired: int = 0
    _kafka_count: int = 0
    _kafka_first: int | None = None
    _kafka_last: int | None = None
    compacted: int = 0
    _stored: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    _offsets: "array[int]" = field(default_factory=lambda: array("q"))
    _seqs: "array[int]" = field(default_factory=lambda: array("q"))
    _times_ns: "array[int]" = field(default_factory=lambda: array("q"))
    """Where and when the record of the same place in ``_offsets`` was stored; neither falls."""
    _tombstones_below: int = 0
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
        self._offsets.append(offset)
        self._seqs.append(at.seq)
        self._times_ns.append(max(at.time_ns, self._times_ns[-1]) if self._times_ns else at.time_ns)
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

    def tombstones_expire(self, before_ns: float, below: int) -> None:
        """Records without a value may be gone, if they were stored before then, and below there.

        A record that was stored later tells of all behind it that they were, too.
        """
        place = bisect.bisect_left(self._times_ns, before_ns)
        later = self._offsets[place] if place < len(self._offsets) else below
        self._tombstones_below = min(below, later)

    def compare(self, record: Record, subject: str) -> None:
        """Kafka's next record, which goes under ``subject``."""
        self._kafka_count += 1
        self._kafka_first = record.offset if self._kafka_first is None else self._kafka_first
        self._kafka_last = record.offset
        stored = self._stored.pop(record.offset, None)
        if stored is None and record.offset < self.removed_below:
            self.expired += 1
            return
        if stored is None and record.value is None and record.offset < self._tombstones_below:
            self.expired += 1
            self._found.setdefault(subject, []).append(record.offset)  # it pushed others out
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
        what = "the stream does not have this record"
        found += [(offset, None, what) for offset, _ in self.unexplained()]
        if self.is_compacted:
            self.compacted = len(self._stored)
        else:
            what = "the stream has a record that Kafka does not have"
            found += [(offset, seq, what) for offset, (seq, _) in self._stored.items()]
        if not found:
            return None
        offset, seq, what = min(found, key=lambda it: it[0])
        return Difference(kafka_partition=kafka_partition, offset=offset, seq=seq, what=what)

    def unexplained(self) -> list[tuple[int, str]]:
        """Per subject the first missing offset that `first_unexplained` gives, if any."""
        firsts = ((self.first_unexplained(subject), subject) for subject in self._missing)
        return [(offset, subject) for offset, subject in firsts if offset is not None]

    def first_unexplained(self, subject: str) -> int | None:
        """The first missing offset that newer messages of its subject did not push out."""
        missing = self._missing[subject]
        if self.keeps is None:
            return missing[0]
        found, others = self._found.get(subject, []), self.others.get(subject, [])
        for offset in missing:
            place = bisect.bisect_left(self._offsets, offset)
            stored_after = self._seqs[place - 1] if place else 0  # in its partition's order
            newer = len(found) - bisect.bisect_right(found, offset)
            if newer + len(others) - bisect.bisect_right(others, stored_after) < self.keeps:
                return offset
        return None


def _digest(parts: Parts) -> bytes:
    return hashlib.blake2b(joined(parts), digest_size=16).digest()
