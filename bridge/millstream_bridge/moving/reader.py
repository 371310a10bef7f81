"""What a session reads from its source, one batch ahead, and what it looks at meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..errors import SessionLost, Unreachable
from ..model import Positions, Watermarks
from ..ports import Polled, Source
from .seam import Seam

logger = logging.getLogger(__name__)

LAG_EVERY_S = 1.0
_POLL_S = 0.2


class Reader:
    """Polls one batch ahead of what is being published; knows how far each partition was read."""

    def __init__(
        self,
        source: Source,
        batch_records: int,
        positions: Positions,
        marks: dict[int, Watermarks],
        *,
        seam: Seam,
        partition_count: int,
        look_for_partitions_s: float,
        check_topic: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._seam = seam
        self._check_topic = check_topic
        self._checking: asyncio.Task[None] | None = None
        self._partition_count = partition_count
        self._look_for_partitions_s = look_for_partitions_s
        self._source = source
        self._batch_records = batch_records
        self.due = {p: positions.get(p, mark.low) for p, mark in marks.items()}
        self.read = dict(self.due)
        self.ends = {p: mark.high for p, mark in marks.items()}
        self.newest_ms: dict[int, int] = {}
        self._polling: asyncio.Task[Polled] | None = None
        self._looked_at = self._checked_at = asyncio.get_running_loop().time()

    @property
    def lag(self) -> int:
        """Offsets between what was read and the highest end known."""
        return sum([max(0, high - self.read[p]) for p, high in self.ends.items()])

    def has_reached(self, goal: Positions) -> bool:
        """Whether everything below these offsets was read, and the seam looked at."""
        return self._seam.is_closed and all(
            self.read.get(p, 0) >= offset for p, offset in goal.items()
        )

    async def next(self) -> Polled:
        """The next batch, perhaps empty; the one after it is already being fetched."""
        await self._look_around()
        if self._polling is None:
            self._polling = self._poll()
        polled = await self._polling
        self._polling = None if polled.error else self._poll()
        if not self._seam.is_closed:
            polled = self._seam.look(polled)
        for record in polled.records:
            if record.offset < self.due[record.kafka_partition]:
                raise SessionLost(f"Kafka gave offset {record.offset} again, or out of order")
            self.due[record.kafka_partition] = record.offset + 1
        self.read.update([(p, due) for p, due in self.due.items() if due > self.read[p]])
        self.newest_ms.update([(record[0], record[2]) for record in polled.records])
        for partition, end in polled.ends.items():
            self.read[partition] = max(self.read[partition], end)
            self.ends[partition] = max(self.ends[partition], end)
        return polled

    async def close(self) -> None:
        """Wait for the poll under way; it is short."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        if self._polling is not None:
            # Waited for, not awaited: it may have been cancelled with whoever awaited it.
            await asyncio.wait({self._polling})
            if not self._polling.cancelled() and (error := self._polling.exception()):
                logger.debug("last poll: %s", error, extra={"event": "last_poll_failed"})

    def _poll(self) -> asyncio.Task[Polled]:
        return asyncio.create_task(
            self._source.poll(self._batch_records, _POLL_S), name="kafka poll"
        )

    async def _look_around(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= LAG_EVERY_S:
            self._looked_at = now
            self.ends.update(await self._source.known_ends(list(self.read)))
        if self._checking is not None and self._checking.done():
            checked, self._checking = self._checking, None
            with suppress(Unreachable):
                checked.result()
        if now - self._checked_at < self._look_for_partitions_s:
            return
        self._checked_at = now
        if self._checking is None:
            # Beside the reading: it may take long while a broker is away.
            self._checking = asyncio.create_task(self._check_topic(), name="topic id")
        with suppress(Unreachable):
            count = await self._source.partition_count()
            if count != self._partition_count:
                raise SessionLost(f"the topic has {count} partitions now")
