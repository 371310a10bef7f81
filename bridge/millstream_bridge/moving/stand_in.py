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
from ..model import Piece, Record
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
        self._parked = self._skipped = 0

    @property
    def set_aside(self) -> tuple[int, int]:
        """Records parked and skipped."""
        return self._parked, self._skipped

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
                raise SessionLost(str(refused), is_not_now=True) from refused
            raise

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
        if choice == "park":
            await self._parked_records.park(record, error.reason)
            self._parked += 1
            logger.warning("parked: %s", error, extra={"event": "record_parked"})
            return poison.mark(self._mapping, record, "parked", error.reason)
        self._skipped += 1
        logger.warning("skipped: %s", error, extra={"event": "record_skipped"})
        return poison.mark(self._mapping, record, "skipped", error.reason)
