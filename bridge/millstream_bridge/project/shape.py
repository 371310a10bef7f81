"""The shape of a topic's records, from a sample of them: keys, headers, sizes, gaps, pace. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from millstream_coordinator.partitioning.key import KEY_BYTES_MAX

from ..model import Record, Watermarks
from ..records.headers import pack

DISTINCT_MAX: Final = 100_000
"""Keys, and names of headers, are told apart up to this many."""
_MAGIC: Final = b"\x00"
_SCHEMA_ID_BYTES: Final = 5
_FRAME_BYTES: Final = 160
"""What the bridge's own header lines take, generously."""


@dataclass(slots=True)
class Pace:
    """First and last record of a partition's newest part, for a rate."""

    records: int = 0
    first_ms: int = -1
    last_ms: int = -1
    first_offset: int = -1
    last_offset: int = -1

    def add(self, record: Record) -> None:
        """The next record of the partition."""
        if not self.records:
            self.first_ms, self.first_offset = record.timestamp_ms, record.offset
        self.records += 1
        self.last_ms, self.last_offset = record.timestamp_ms, record.offset

    @property
    def missing(self) -> int:
        """Offsets between the first and the last that no record has."""
        return self.last_offset - self.first_offset + 1 - self.records if self.records else 0

    @property
    def per_second(self) -> float:
        """Records a second by their own timestamps; 0 where those do not tell."""
        span_ms = self.last_ms - self.first_ms
        return 1_000 * (self.records - 1) / span_ms if span_ms > 0 else 0.0


@dataclass(slots=True)
class Shape:
    """What records of one topic look like; fed with `add`."""

    records: int = 0
    null_keys: int = 0
    hashed_keys: int = 0
    key_bytes_max: int = 0
    distinct_keys: set[bytes] = field(default_factory=set)
    tombstones: int = 0
    bytes_total: int = 0
    largest_bytes: int = 0
    largest_at: tuple[int, int] | None = None
    header_block_max: int = 0
    header_block_at: tuple[int, int] | None = None
    header_names: dict[str, int] = field(default_factory=dict)
    packed: int = 0
    schema_ids: set[int] = field(default_factory=set)
    schema_records: int = 0
    log_append: int = 0
    newest_ms: int = -1
    paces: dict[int, Pace] = field(default_factory=dict)

    def add(self, records: Iterable[Record]) -> None:
        """More records, in order per partition."""
        for record in records:
            self.records += 1
            self._add_key(record)
            block = _FRAME_BYTES + self._add_headers(record)
            value = record.value
            if value is None:
                self.tombstones += 1
            elif value[:1] == _MAGIC and len(value) > _SCHEMA_ID_BYTES:
                self.schema_records += 1
                self.schema_ids.add(int.from_bytes(value[1:_SCHEMA_ID_BYTES], "big"))
            size = block + len(value or b"")
            self.bytes_total += size
            at = (record.kafka_partition, record.offset)
            if size > self.largest_bytes:
                self.largest_bytes, self.largest_at = size, at
            if block > self.header_block_max:
                self.header_block_max, self.header_block_at = block, at
            self.log_append += record.timestamp_type == "l"
            self.newest_ms = max(self.newest_ms, record.timestamp_ms)
            self.paces.setdefault(record.kafka_partition, Pace()).add(record)

    def _add_key(self, record: Record) -> None:
        key = record.key
        if key is None:
            self.null_keys += 1
            return
        self.key_bytes_max = max(self.key_bytes_max, len(key))
        self.hashed_keys += len(key) > KEY_BYTES_MAX
        if len(self.distinct_keys) < DISTINCT_MAX:
            self.distinct_keys.add(key)

    def _add_headers(self, record: Record) -> int:
        """Bytes the record's headers and a long key take in a message."""
        size = len(record.key or b"") * 4 // 3 if len(record.key or b"") > KEY_BYTES_MAX else 0
        if not record.headers:
            return size
        for name, _ in record.headers:
            if name in self.header_names or len(self.header_names) < DISTINCT_MAX:
                self.header_names[name] = self.header_names.get(name, 0) + 1
        plain, packed = pack(record.headers)
        self.packed += packed is not None
        return size + sum(len(n) + len(v) + 4 for n, v in plain) + len(packed or "")

    @property
    def mean_bytes(self) -> float:
        """Mean size of a message."""
        return self.bytes_total / self.records if self.records else 0.0

    @property
    def missing(self) -> int:
        """Offsets within the sample that no record has."""
        return sum(pace.missing for pace in self.paces.values())

    @property
    def per_second(self) -> float:
        """Records a second over all partitions, by the timestamps of the sample."""
        return sum(pace.per_second for pace in self.paces.values())


def newest(marks: Mapping[int, Watermarks], records_max: int) -> dict[int, Watermarks]:
    """Bounds of the newest part of each partition, about ``records_max`` offsets in all."""
    busy = {p: mark for p, mark in marks.items() if mark.high > mark.low}
    each = max(1, records_max // len(busy)) if busy else 0
    return {p: Watermarks(max(m.low, m.high - each), m.high) for p, m in busy.items()}
