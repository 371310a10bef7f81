"""What is sent in place of a record that cannot be one message, by the route's choice.

A large record goes in pieces or by reference (`records.chunks`). One that cannot be moved at all
ends the run, or is left out with a **mark**: a message under ``…._poison.<partition>.<offset>``
that has the record's source (flag ``x``), so the position goes on and nothing is left out unseen,
and says why in ``Millstream-Poison: parked|skipped <reason>``. A parked one is kept as a whole (see
`parked`) before its mark is sent.

All of it happens under the guard of the session, like any record: whatever kills the bridge, either
all pieces are stored or the record is read again.
"""

import logging
from collections.abc import Sequence

from ..errors import ConfigurationError, PoisonRecord, RecordError, RecordTooLarge, SessionLost
from ..jetstream.api import ApiError
from ..jetstream.stream import Stream
from ..model import Piece, Positions, Record
from ..records import chunks, poison
from ..records.headers import HEADER_BLOCK_BYTES_MAX
from .large import large_object
from .parked import ParkedRecords
from .window import TEMPORARY_REFUSALS

logger = logging.getLogger(__name__)


class StandIn:
    """The choices of one route, over one connection. Counts what was set aside."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._mapping = stream.mapping
        self._parked_records = ParkedRecords(stream.connection, stream.mapping)
        self._waiting: dict[int, int] = {}
        """Of each partition the offset of the last record that a bucket had no room for."""
        self._counts: dict[poison.Fate, int] = {"parked": 0, "skipped": 0}
        self._newest: dict[int, tuple[int, poison.Fate]] = {}
        """Of each partition the newest mark that was made, and is not counted yet: offset, fate."""

    def set_aside(self, positions: Positions) -> tuple[int, int]:
        """Records parked and skipped whose marks are stored, as ``positions`` say."""
        for partition in list(self._newest):
            self._count(partition, positions.get(partition, 0))
        return self._counts["parked"], self._counts["skipped"]

    async def pieces(
        self, record: Record, error: RecordError, message_bytes_max: int
    ) -> Sequence[Piece]:
        """What to send, in this order, so that the record is dealt with; or raise ``error``.

        SessionLost: the bucket it is to be kept in takes nothing now.
        """
        try:
            return await self._pieces(record, error, message_bytes_max)
        except ConfigurationError as refused:
            cause = refused.__cause__
            if isinstance(cause, ApiError) and cause.code in TEMPORARY_REFUSALS:
                self._tell_that_it_waits(record, refused)
                raise SessionLost(str(refused), is_not_now=True) from refused
            raise

    def _tell_that_it_waits(self, record: Record, refused: ConfigurationError) -> None:
        """Once of each record: sessions end again and again, and other partitions may go on."""
        if self._waiting.get(record.kafka_partition) == record.offset:
            return
        self._waiting[record.kafka_partition] = record.offset
        logger.warning(
            "topic %s partition %d waits at offset %d: %s",
            self._mapping.route.topic,
            record.kafka_partition,
            record.offset,
            refused,
            extra={"event": "takes_nothing", "offset": record.offset},
        )

    async def _pieces(
        self, record: Record, error: RecordError, message_bytes_max: int
    ) -> Sequence[Piece]:
        large = self._mapping.route.large
        if isinstance(error, RecordTooLarge) and large != "refuse":
            found = await self._large(record, message_bytes_max)
            room = min(message_bytes_max, HEADER_BLOCK_BYTES_MAX) - chunks.HEADER_BYTES_RESERVED
            if found and len(found[-1].lines) <= room:
                return found
        if isinstance(error, PoisonRecord):
            return [await self._mark(record, error)]
        raise error

    async def _large(self, record: Record, message_bytes_max: int) -> list[Piece] | None:
        if self._mapping.route.large == "object-store":
            return [await large_object(self._stream.connection, self._mapping, record)]
        return chunks.pieces(self._mapping, record, message_bytes_max)

    async def _mark(self, record: Record, error: PoisonRecord) -> Piece:
        choice = self._mapping.route.on_poison
        if choice == "stop":
            raise error
        fate: poison.Fate = "parked" if choice == "park" else "skipped"
        if choice == "park":
            await self._parked_records.park(record, error.reason)
        partition, mark = record.kafka_partition, (record.offset, fate)
        self._count(partition, record.offset)  # what was met before is stored by now
        if self._newest.get(partition) != mark:
            logger.warning("%s: %s", fate, error, extra={"event": f"record_{fate}"})
        self._newest[partition] = mark
        return poison.mark(self._mapping, record, fate, error.reason)

    def _count(self, partition: int, position: int) -> None:
        """Count the partition's newest mark if all below ``position`` is stored.

        Not before: a session that ends in between makes it again.
        """
        newest = self._newest.get(partition)
        if newest is not None and newest[0] < position:
            self._counts[newest[1]] += 1
            del self._newest[partition]
