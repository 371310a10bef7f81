"""Two sides that need not have every record: compaction on either, a limit per subject. Pure.

A stream that keeps the newest messages per subject must have, of each subject, the newest ones that
Kafka has, but for those that other messages of the subject pushed out, native ones too; Kafka's
compaction may since have removed some that the stream still holds. Every record
that is on both sides must be the same. Unlike a `Ledger` this remembers a digest for each stored
record: about 240 bytes each, and up to 370 where Kafka compacts.

Compaction leaves the newest record of each key, but for a tombstone, which goes in the end. So what
only the stream has must have a newer one of its key in Kafka, or be, or be followed by, a tombstone
that only the stream has. Records without a key are removed, too.
"""

import bisect
import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..jetstream.consumer import place_of
from ..model import Record
from ..records.headers import NULL_KEY, NULL_VALUE
from .parts import Parts, joined, parts_of
from .values import Difference, Side

_NO_KEY: Final = -1
"""No key has this hash: Python keeps it for itself."""


@dataclass(slots=True)
class Newest:
    """The stream's records of a partition, then Kafka's against them.

    ``keeps``: how many messages per subject the stream holds, None for all. ``is_compacted``: Kafka
    removes records of keys that have a newer one. ``removed_below``: the stream's other limits may
    have removed records below this offset. ``others`` are the sequences of messages that are no
    records, or were behind Kafka's end when the proof began, in their order, by subject. ``marked``
    are the offsets of records that the bridge did not move.
    """

    keeps: int | None
    is_compacted: bool
    others: Mapping[str, Sequence[int]] = field(default_factory=dict)
    marked: set[int] = field(default_factory=set)
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
    _keys: "array[int]" = field(default_factory=lambda: array("q"))
    _tombstones: bytearray = field(default_factory=bytearray)
    """Hashes of the keys of the records in ``_offsets``, and whether they have no value."""
    _kafka_keys: dict[int, int] = field(default_factory=dict)
    """The newest offset of each key in Kafka, by the key's hash."""
    _tombstones_below: int = 0
    _found: dict[str, list[int]] = field(default_factory=dict)
    _missing: dict[str, list[int]] = field(default_factory=dict)
    _whole: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    _first: int | None = None
    _last: int | None = None
    differs_at: tuple[int, int] | None = None
    """Offset and sequence of the first record that is not the same on both sides."""
    invented_at: tuple[int, int] | None = None
    """Those of the first that only the stream has, and that compaction does not explain."""

    def add(self, offset: int, parts: Parts, place: bytes) -> None:
        """The stream's next record."""
        digest = _digest(parts)
        at = place_of(place)
        self._stored[offset] = (at.seq, digest)
        self._offsets.append(offset)
        self._seqs.append(at.seq)
        self._times_ns.append(max(at.time_ns, self._times_ns[-1]) if self._times_ns else at.time_ns)
        if self.is_compacted:
            flags = parts[0].rpartition(b" ")[2].decode()
            is_null = flags in (NULL_KEY, NULL_VALUE + NULL_KEY)
            self._keys.append(_NO_KEY if is_null else hash(parts[1]))
            self._tombstones.append(flags.startswith(NULL_VALUE))
        self._whole.update(digest)
        self._first = offset if self._first is None else self._first
        self._last = offset

    def add_all(self, offsets: Sequence[int], parts: Sequence[Parts], places: list[bytes]) -> None:
        """The stream's next records."""
        for it in zip(offsets, parts, places, strict=True):
            self.add(*it)

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

    def note(self, record: Record) -> None:
        """Any record of Kafka's, also one that does not go to the stream, in its order."""
        if self.is_compacted and record.key is not None:
            self._kafka_keys[hash(record.key)] = record.offset
        self.marked.discard(record.offset)

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
        what = "the stream has a record that Kafka does not have"
        if self.is_compacted:
            self.compacted = len(self._stored)
            if self.invented_at is not None:
                what += ", nor a newer one of its key, as compaction leaves"
                found.append((*self.invented_at, what))
        else:
            found += [(offset, seq, what) for offset, (seq, _) in self._stored.items()]
        if not found:
            return None
        offset, seq, what = min(found, key=lambda it: it[0])
        return Difference(kafka_partition=kafka_partition, offset=offset, seq=seq, what=what)

    def not_compacted(self) -> list[tuple[int, int]]:
        """Offset and sequence of each record that only the stream has, and compaction leaves.

        Which key a record had that was not moved, or a tombstone that expired, is not known: it may
        have been any.
        """
        if not self.is_compacted:
            return []
        unknown_below = max(self._tombstones_below - 1, max(self.marked, default=0))
        found: list[tuple[int, int]] = []
        gone: set[int] = set()
        for place in reversed(range(len(self._offsets))):
            offset, key = self._offsets[place], self._keys[place]
            if offset not in self._stored:
                continue
            if self._tombstones[place]:
                gone.add(key)
            is_known = key != _NO_KEY and offset >= unknown_below
            if is_known and key not in gone and self._kafka_keys.get(key, -1) < offset:
                found.append((offset, self._stored[offset][0]))
        return found[::-1]

    def stored_before(self, offset: int) -> int:
        """The sequence of the stream's newest record below an offset, 0 without one."""
        place = bisect.bisect_left(self._offsets, offset)
        return self._seqs[place - 1] if place else 0

    def is_left(self, seq: int) -> bool:
        """Whether there is a record that only the stream has."""
        place = bisect.bisect_left(self._seqs, seq)
        return (
            place < len(self._seqs)
            and self._seqs[place] == seq
            and self._offsets[place] in self._stored
        )

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
            stored_after = self.stored_before(offset)  # in its partition's order
            newer = len(found) - bisect.bisect_right(found, offset)
            if newer + len(others) - bisect.bisect_right(others, stored_after) < self.keeps:
                return offset
        return None


def _digest(parts: Parts) -> bytes:
    return hashlib.blake2b(joined(parts), digest_size=16).digest()
