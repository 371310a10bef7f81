"""Where a partition begins whose record is not there: a new group, or something was lost.

An epoch must never come twice, and a floor should not fall. What is asked, from the best witness to
the last:

* the newest record ever heard of here (`Context.last_known`): its owner may still run handler calls
  under its epoch, so the new one is above it; and the owner's saved progress is the newest, unless
  there is some of a higher epoch;
* saved progress (``done.<member>``) of any member: epochs, and, as far as it is of as many
  partitions as there are now, floors, and whose it is;
* the group's consumers: epochs in their names, and their ack floors. They also know how many
  partitions there were: a bucket that was lost after a resize, and made anew by somebody who had
  not heard of it, is told so.

A group without a stream has the first of them alone, so there the members themselves are asked:
each heartbeat carries the highest epoch its sender knows, and who leads a bucket without records
listens for the heartbeat timeout before it makes any. Who was not heard for so long (paused, cut
off) trusts itself no more, and raises what is too low when it is back (`handoff.raise_outdated`).

**The new epoch** is above all of them, of whichever partition, and above the newest revision known
of the bucket. The latter is what makes it sure: all witnesses may be gone, or not have seen what
was lost. Each new epoch is at most one above one that was there, and costs a write, so none is
above the revision of the write that stored it; and revisions only grow, from each bucket to the one
made after it as well (``jetstream/keys.py``). So whatever a lost record held, in this bucket or in
one before, is below the revision at which it is missed; and the new one is written by
compare-and-set on that revision, so nobody gave another in between. Such epochs have sixteen
digits; those that follow upon them have, too, and no others.

A group that never ran has no witness and only the places its leader made (``book.py``), and begins
with epoch 1 at the start of its stream.
"""

from dataclasses import replace

from ..events import Cause
from ..model import DonePosition, PartitionRecord
from ..naming import CONFIG_KEY, DONE_PREFIX, parse_consumer, partition_key
from ..ports import (
    ConsumerNames,
    ConsumerRead,
    KeyNames,
    KeyRead,
    ListConsumers,
    ListKeys,
    ReadConsumer,
    ReadKey,
)
from .context import Context, Part
from .handoff import saved_positions
from .steps import Pause


class Survey:
    """What the witnesses say; asked once, and again after `forget`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._listens_since = context.now
        self._is_done = False
        self._asked_at = 0
        """The newest revision that was known when it was asked."""
        self._epoch = 0
        self._floors: dict[int, int] = {}
        self._saved: dict[int, tuple[DonePosition, str]] = {}
        """Partition → its progress of the highest epoch, and whose it is."""

    def forget(self) -> None:
        """Everything is there now; what is missing later is looked for anew."""
        self._is_done = False

    def is_done(self, partition: int) -> bool:
        """Whether it was asked since the partition's record was lost, as far as that is known."""
        revision = self._context.book.revision(partition_key(partition))
        return self._is_done and revision <= self._asked_at

    def knows(self, partition: int) -> bool:
        """Whether anybody bears witness of a partition since the last resize."""
        lost = self._context.last_known.get(partition)
        was_there = lost is not None and self._context.is_current(lost)
        return was_there or partition in self._floors or partition in self._saved

    def first_record(self, partition: int) -> PartitionRecord:
        """Return the record a partition begins with, owned by nobody; the survey is done."""
        context = self._context
        position, holder = self._saved.get(partition, (None, None))
        floor = self._floors.get(partition, 0)
        epoch = max(self._epoch, context.highest_epoch, context.config.base_epoch)
        if epoch or partition not in context.book.places:
            epoch = max(epoch, context.book.last_revision)
        record = PartitionRecord(
            epoch=epoch + 1,
            floor=max(floor, position.floor) if position is not None else floor,
            done_from=holder,
            cause=Cause.JOINED,
            level=context.config.level,
        )
        lost = context.last_known.get(partition)
        if lost is None or not context.is_current(lost):
            return record
        if position is None or position.epoch <= lost.epoch:
            holder = lost.owner or lost.done_from
        return replace(record, floor=max(record.floor, lost.floor), done_from=holder)

    def run(self) -> Part:
        """Ask; False: somebody did not answer, or the number of partitions is another."""
        context = self._context
        self._is_done, self._asked_at = False, context.book.last_revision
        self._epoch = 0
        self._saved = {}
        if not context.has_stream:
            timeout_s = context.settings.timing.heartbeat_timeout_s
            if not context.last_known and context.now < self._listens_since + timeout_s:
                yield Pause(self._listens_since + timeout_s - context.now)
            self._is_done = True
            return True
        listed = yield ListConsumers(id=context.steps.take_id())
        if not isinstance(listed, ConsumerNames):
            return False
        newest: dict[int, int] = {}
        for name in listed.names:
            found = parse_consumer(context.settings.group, name)
            if found is not None and found.epoch > context.config.base_epoch:
                newest[found.partition] = max(found.epoch, newest.get(found.partition, 0))
        books: list[tuple[int, int, int, int]] = []
        for partition, epoch in newest.items():
            info = yield ReadConsumer(
                id=context.steps.take_id(), name=context.consumer(partition, epoch)
            )
            if not isinstance(info, ConsumerRead) or not info.is_there:
                return False  # deleted since: what is not there says nothing of how many there are
            level = info.level or context.config.partitions
            books.append((epoch, level, partition, info.ack_floor))
        if books:
            highest, level = max(books)[:2]
            self._epoch = max(self._epoch, highest)
            if not (yield from self._put_level(level, [it[0] for it in books if it[1] == level])):
                return False
        if not (yield from self._read_saved()):
            return False
        self._floors = {n: floor for _, of, n, floor in books if of == context.num_partitions}
        self._is_done = True
        return True

    def _put_level(self, level: int, epochs: list[int]) -> Part:
        """Tell the bucket how many partitions there were when it was lost.

        Not where there are records of as many as it says: then it knows better than a consumer
        that somebody made who had not heard of its last resize.
        """
        context, config = self._context, self._context.config
        if level == config.active or level not in config.levels:
            return True
        if any(context.is_current(record) for record in context.book.partitions.values()):
            return True
        new = replace(
            config,
            level=level,
            resize_to=None if config.resize_to == level else config.resize_to,
            base_epoch=max(config.base_epoch, min(epochs) - 1),
        )
        return (yield from context.write(CONFIG_KEY, new))

    def _read_saved(self) -> Part:
        context = self._context
        listed = yield ListKeys(id=context.steps.take_id(), prefix=DONE_PREFIX)
        if not isinstance(listed, KeyNames):
            return False
        for key in sorted(listed.keys):
            read = yield ReadKey(id=context.steps.take_id(), key=key)
            if not isinstance(read, KeyRead):
                return False
            holder = key.removeprefix(DONE_PREFIX)
            for partition, position in saved_positions(read.value).items():
                self._epoch = max(self._epoch, position.epoch)
                known = self._saved.get(partition)
                is_ours = position.epoch > context.config.base_epoch and position.level in (
                    0,
                    context.num_partitions,
                )
                if is_ours and (known is None or position.epoch > known[0].epoch):
                    self._saved[partition] = position, holder
        return True
