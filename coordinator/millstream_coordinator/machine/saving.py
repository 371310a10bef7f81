"""``done.<member>``: how far this member is in each partition, in one value.

Written at most every ``save_interval_s`` (or ``save_every`` handled messages) while something
changed, for all partitions together: one by one it would be ten thousand writes a second for a
thousand partitions. It also carries on what it last said of partitions given away, as long as their
records point here.

One write is under way at a time. Who must know that something is saved (a release) waits for one
that began after it asked: partitions that are given away together share it, where each writing for
itself would be refused by compare-and-set and begin again.
"""

from collections.abc import Mapping

from ..errors import BadRecord
from ..model import DonePosition, DoneRecord, PartitionRecord, decode, encode
from ..naming import done_key
from ..ports import KeyRead, ReadKey, WriteKey, Written
from .context import Context, Part
from .ownership import Ownership
from .steps import Pause, Script

WAIT_S = 0.1
"""A write is looked after this often by who waits for it, beside being told when it has ended."""


class Saving:
    """The saved progress of one member; ``owned`` is the owner's, read only."""

    def __init__(self, context: Context, owned: Mapping[int, Ownership]) -> None:
        self.context = context
        self.num_unsaved = 0
        """Messages handled since the last save."""
        self._owned = owned
        self._carried: dict[int, DonePosition] = {}
        self._saved_at = float("-inf")
        self._last_begun = 0
        """Number of the newest write."""
        self._last_stored = 0
        """… of the newest that was stored."""

    def carry(self, one: Ownership) -> None:
        """Keep the progress of a partition that is given away, or what is there if it knew none."""
        if one.has_progress:
            self._carried[one.partition] = one.position()

    def drop_carried(self, partition: int, record: PartitionRecord | None) -> None:
        """Forget saved progress that no record can point to any more.

        One of the current epoch may still be pointed to: by the next change of owner, when this is
        a new process under the old one's name and the old one's partitions are yet to be moved.
        Without a record it was lost, and the one made anew points here, or a resize did away with
        the partition.
        """
        position = self._carried.get(partition)
        if position is None:
            return
        if record is None:
            is_needed = partition < self.context.num_partitions
        else:
            is_here = record.done_from == self.context.settings.member
            is_needed = is_here or position.epoch >= record.epoch
        if not is_needed:
            del self._carried[partition]

    def tick(self) -> None:
        """Save, if it is time."""
        if self.context.now >= self.next_deadline:
            self._start()

    @property
    def next_deadline(self) -> float:
        """When there is something to save."""
        if not self.num_unsaved or "save" in self.context.steps:
            return float("inf")
        timing = self.context.settings.timing
        if self.num_unsaved >= timing.save_every:
            return self.context.now
        return self._saved_at + timing.save_interval_s

    def _start(self) -> None:
        self._saved_at = self.context.now
        self.context.steps.start("save", self._script(), self.context.now)

    def _script(self) -> Script:
        self._last_begun = number = self._last_begun + 1
        if (yield from self._write()):
            self._last_stored = number
        else:
            self.num_unsaved += 1

    def save(self) -> Part:
        """Save what is so now; False: not written, to be tried again."""
        wanted = self._last_begun + 1
        while self._last_stored < wanted:
            if "save" not in self.context.steps:
                if self._last_begun >= wanted:
                    return False
                self._start()
            yield Pause(WAIT_S, "save")
        return True

    def _write(self) -> Part:
        context = self.context
        self.num_unsaved = 0
        partitions = dict(self._carried)
        partitions.update({n: one.position() for n, one in self._owned.items() if one.has_progress})
        key = done_key(context.settings.member)
        record = DoneRecord(instance=context.settings.instance, partitions=partitions)
        value = encode(record)
        reply = yield WriteKey(
            id=context.steps.take_id(), key=key, value=value, revision=context.book.revision(key)
        )
        if isinstance(reply, Written):
            context.book.note(key, value, reply.revision)
            return True
        read = yield ReadKey(id=context.steps.take_id(), key=key)
        if isinstance(read, KeyRead):
            context.book.note(key, read.value, read.revision)
        return False

    def load(self) -> Part:
        """Read what this member's name saved before: a new process must not lose it."""
        key = done_key(self.context.settings.member)
        reply = yield ReadKey(id=self.context.steps.take_id(), key=key)
        if not isinstance(reply, KeyRead):
            return False
        self.context.book.note(key, reply.value, reply.revision)
        if reply.value is not None:
            try:
                self._carried = dict(decode(DoneRecord, reply.value).partitions)
            except BadRecord:
                self._carried = {}
        return True
