"""Records that came back from NATS, against the messages they were made of.

The way back writes what was published straight to NATS into Kafka, with marks that say which
message it was (`records.origin`). Such a record must be what its message becomes there
(`back.returning`), and stand in the order of its stream. Records are collected, and then their
messages read, a partition at a time: each is read once, and few are in memory.
"""

import math
from collections.abc import Mapping as AbcMapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ..back.returning import Delivered, NotReturnable, Returning
from ..jetstream.connection import Delivery
from ..jetstream.consumer import place_of
from ..model import Record, TimestampType
from ..records.mapping import Mapping
from ..records.origin import Return
from .ledger import different
from .sides import Part, Sides
from .values import Difference

_RECORDS_MAX: Final = 5_000
_BYTES_MAX: Final = 16 << 20


class Last(NamedTuple):
    """A partition's last record that came back: its offset, and from where."""

    offset: int
    origin: Return


@dataclass(slots=True)
class Returns:
    """Compares what came back, of the partitions whose streams are in ``parts``.

    ``last`` outlives it, where more is compared later. ``count``: records that came back;
    ``unpaired``: those of them whose message is gone, or in another stream. ``differences``: the
    first of each partition.
    """

    sides: Sides
    mapping: Mapping
    last: dict[int, Last] = field(default_factory=dict)
    parts: AbcMapping[int, Part] = field(default_factory=dict)
    count: int = 0
    unpaired: int = 0
    differences: dict[int, Difference] = field(default_factory=dict)
    _waiting: dict[int, dict[int, Record]] = field(default_factory=dict)
    """By partition and sequence."""
    _records: int = 0
    _bytes: int = 0

    def note(self, record: Record, origin: Return) -> None:
        """Kafka's next record that came back.

        It did so once, and in its order, so sequences rise. Another record with the marks of one
        was written by somebody else, and never moved. A route that has got another stream begins
        anew.
        """
        p, offset = record.kafka_partition, record.offset
        last = self.last.get(p, Last(-1, origin._replace(seq=0)))
        if offset <= last.offset:
            return  # read again
        self.count += 1
        last_seq = last.origin.seq if last.origin.stream == origin.stream else 0
        self.last[p] = Last(offset, origin._replace(seq=max(origin.seq, last_seq)))
        if origin.seq <= last_seq:
            what = (
                "it is marked as come back from NATS, and so is a record before it: it was"
                " written again by somebody, and the stream does not have it"
            )
            self._differ(record, origin.seq, what)
        elif origin.stream != self.parts[p].stream:
            self.unpaired += 1
        else:
            self._waiting.setdefault(p, {})[origin.seq] = record
            self._records += 1
            self._bytes += len(record.value or b"")

    @property
    def is_full(self) -> bool:
        """Whether it is time to `compare`."""
        return self._records >= _RECORDS_MAX or self._bytes >= _BYTES_MAX

    async def compare(self) -> None:
        """Compare what was noted so far."""
        waiting, self._waiting = self._waiting, {}
        self._records = self._bytes = 0
        for p, records in waiting.items():
            part = await self.sides.again(self.parts[p])
            returning = Returning(self.mapping, p + 1, everything=False)
            info = part.info._replace(last_seq=min(max(records), part.info.last_seq))
            messages = self.sides.messages(
                replace(part, info=info), self.mapping.partition_filter(p), min(records)
            )
            async for batch in messages:
                for message in batch:
                    if (record := records.pop(place_of(message[0]).seq, None)) is not None:
                        self._compare(record, message, returning)
            await self._without_message(part, records)

    def _compare(self, record: Record, message: Delivery, returning: Returning) -> None:
        ack, subject, block, payload = message
        seq, _, time_ns, _ = place_of(ack)
        try:
            native = returning.record(
                Delivered(seq, time_ns, subject.decode("utf-8", "replace"), block, payload)
            )
            reason = "no bridge's way back takes it to Kafka"
        except NotReturnable as trouble:
            native, reason = None, str(trouble)
        if native is None:
            self._differ(record, seq, f"it is marked as come back from this message: {reason}")
            return
        native = native._replace(offset=record.offset)
        if record.timestamp_type is TimestampType.LOG_APPEND:  # Kafka's own, by the topic's setting
            native = native._replace(
                timestamp_type=record.timestamp_type, timestamp_ms=record.timestamp_ms
            )
        found = different(record.kafka_partition, record, seq, native)
        if found is not None:
            self._differ(record, seq, f"it came back from NATS with {found.what}", native)

    async def _without_message(self, part: Part, records: AbcMapping[int, Record]) -> None:
        """Of these the partition has no message: it is gone, or never was."""
        gone_below: float = 0
        for seq, record in sorted(records.items()):
            found = None
            if gone_below <= seq <= part.info.last_seq:
                found = await self.sides.next_message(part, part.filter, seq)
                gone_below = math.inf if found is None else found.seq
            if found is not None and found.seq == seq:
                what = (
                    f"it is marked as come back from a message of another subject {found.subject}"
                )
                self._differ(record, seq, what)
            elif part.gone == 0 or seq > part.info.last_seq:
                what = "it is marked as come back from a message that the stream never had"
                self._differ(record, seq, what)
            else:
                self.unpaired += 1

    def _differ(self, record: Record, seq: int, what: str, native: Record | None = None) -> None:
        p, offset = record.kafka_partition, record.offset
        if p not in self.differences or offset < self.differences[p].offset:
            self.differences[p] = Difference(
                kafka_partition=p, offset=offset, seq=seq, what=what, kafka=record, nats=native
            )
