"""A resize as its leader drives it: from the moment everything is free to the new partitions.

The theory is in ``leader.py`` (the four steps) and ``resize.py`` (what is handed on). What was
handed on is kept under ``done.=<base_epoch>-<i>``, written before ``cfg`` says the new number; the
new partitions' records name it in ``done_from`` where there is more than a floor, and then it is
read like any owner's progress, handed on past owners that die, and deleted when nobody needs it.
"""

from collections.abc import Iterable
from dataclasses import replace

from ..events import Cause
from ..model import DonePosition, DoneRecord, PartitionRecord
from ..naming import CONFIG_KEY, done_key, handed_on, parked_key
from ..ports import KeyRead, ReadKey
from .context import Context, Part
from .handoff import saved_positions
from .resize import CHUNK, hand_on, hand_on_parked, position_of


class Barrier:
    """Steps 2 and 3, and what step 4 begins with."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handed_on: dict[str, dict[int, DonePosition]] = {}
        """Holder → what a resize handed on to the partitions of its chunk."""
        self._stopped_ns = 0
        """When the first of the old partitions stopped: the whole group stands still since then."""
        self._crossed: int | None = None
        """``base_epoch`` of the resize this leader did."""

    def is_sure(self, partition: int) -> bool:
        """Whether a partition without a record is one that the last resize has yet to make.

        Only who did the resize knows that; for others its record may as well be lost.
        """
        lost = self._context.last_known.get(partition)
        is_lost = lost is not None and self._context.is_current(lost)
        return self._crossed == self._context.config.base_epoch and not is_lost

    def is_known(self, partition: int) -> bool:
        """Whether it was looked for what was handed on to a partition; if not: `read`."""
        return not self._context.config.base_epoch or self._holder(partition) in self._handed_on

    def _holder(self, partition: int) -> str:
        return handed_on(self._context.config.base_epoch, partition // CHUNK)

    def read(self, partition: int) -> Part:
        """Read what was handed on to a partition and its neighbours."""
        context = self._context
        holder = self._holder(partition)
        read = yield ReadKey(id=context.steps.take_id(), key=done_key(holder))
        if not isinstance(read, KeyRead):
            return False
        self._handed_on[holder] = saved_positions(read.value)
        # Another leader crossed: the old partitions' records that are still there say since when.
        old = [it for it in context.book.partitions.values() if not context.is_current(it)]
        self._stopped_ns = self._stopped_ns or _first_stop(old)
        return True

    def first_record(self, partition: int) -> PartitionRecord | None:
        """Return the record a partition begins with, owned by nobody; None: nothing is known.

        Nothing is known where there was no resize, or where the bucket was lost since.
        """
        context = self._context
        if not context.config.base_epoch:
            return None
        holder = self._holder(partition)
        position = self._handed_on[holder].get(partition)
        if position is None:
            return None
        return PartitionRecord(
            epoch=context.config.base_epoch + 1,
            floor=position.floor,
            done_from=holder if position.done or position.children else None,
            cause=Cause.RESIZED,
            stopped_ns=self._stopped_ns,
            level=context.config.level,
        )

    def free_records(self) -> dict[int, PartitionRecord] | None:
        """Return all partitions' records if nobody owns any of them."""
        context = self._context
        records = {}
        for number in range(context.num_partitions):
            record = context.book.partitions.get(number)
            if record is None or record.owner is not None or not context.is_current(record):
                return None
            records[number] = record
        return records

    def cross(self, to: int) -> Part:
        """Hand on what there is and write the new number; False: not (yet), look again."""
        context = self._context
        records = self.free_records()
        if records is None or context.resize_to != to:
            return False
        old, config_revision = context.num_partitions, context.book.revision(CONFIG_KEY)
        saved: dict[str | None, dict[int, DonePosition]] = {}
        for holder in sorted({it.done_from for it in records.values() if it.done_from is not None}):
            read = yield ReadKey(id=context.steps.take_id(), key=done_key(holder))
            if not isinstance(read, KeyRead):
                return False
            saved[holder] = saved_positions(read.value, old)
        positions = {
            n: position_of(it, saved.get(it.done_from, {}).get(n)) for n, it in records.items()
        }
        base_epoch = context.highest_epoch + 1
        if not (yield from self._write(hand_on(positions, old, to, base_epoch), base_epoch)):
            return False
        for number, parked in hand_on_parked(context.book.parked, old, to).items():
            if context.book.parked.get(number) != parked and not (
                yield from context.write(parked_key(number), parked)
            ):
                return False
        is_still_so = (
            self.free_records() == records and context.book.revision(CONFIG_KEY) == config_revision
        )
        if not is_still_so:
            return False
        config = replace(context.config, level=to, resize_to=None, base_epoch=base_epoch)
        self._crossed = base_epoch
        self._stopped_ns = _first_stop(records.values())
        return (yield from context.write(CONFIG_KEY, config))

    def _write(self, positions: dict[int, DonePosition], base_epoch: int) -> Part:
        context = self._context
        chunks: dict[int, dict[int, DonePosition]] = {}
        for number, position in positions.items():
            chunks.setdefault(number // CHUNK, {})[number] = position
        for chunk, its in chunks.items():
            holder = handed_on(base_epoch, chunk)
            if not (yield from context.refresh_key(done_key(holder))):
                return False
            record = DoneRecord(instance="", partitions=its)
            if not (yield from context.write(done_key(holder), record)):
                return False
            self._handed_on[holder] = its
        return True


def _first_stop(records: Iterable[PartitionRecord]) -> int:
    return min((it.stopped_ns for it in records if it.stopped_ns), default=0)
