"""What the leader cleans up from time to time: consumers and saved progress that are over.

**Consumers** whose epoch is not current. A paused process may wake up and make the consumer of an
epoch that is long over; on a work-queue stream it blocks the right one. The records are read after
the list, so no consumer in the list can be newer than what is compared with it.

**Saved progress** of members long gone, and of resizes, when no record points to it: only what
nobody needed at the last look either, and what was not written since, for a member that comes back
under its name writes it anew. Whoever was deposed in between deletes nothing.
"""

from collections.abc import Callable

from ..events import ConsumerReconciled, GroupEvent
from ..naming import DONE_PREFIX, LEADER_KEY, PARTITION_PREFIX, parse_consumer
from ..ports import (
    ConsumerNames,
    DeleteConsumer,
    DeleteKey,
    Done,
    KeyNames,
    KeyRead,
    ListConsumers,
    ListKeys,
    ReadKey,
)
from .context import Context
from .steps import Script


class Reconciler:
    """One leader's looks."""

    def __init__(self, context: Context, keep: Callable[[GroupEvent], None]) -> None:
        self._context = context
        self._keep = keep
        self._old_progress: dict[str, int] = {}
        """Keys of saved progress nobody needed at the last look → their revisions."""

    def look(self) -> Script:
        """Delete what is over."""
        if self._context.has_stream:
            yield from self._look_at_consumers()
        yield from self._look_at_progress()

    def _look_at_consumers(self) -> Script:
        context = self._context
        listed = yield ListConsumers(id=context.steps.take_id())
        if not isinstance(listed, ConsumerNames):
            return
        for name in listed.names:
            found = parse_consumer(context.settings.group, name)
            if found is None:
                continue
            if found.epoch > context.config.base_epoch:
                record = context.book.partitions.get(found.partition)
                if record is not None and record.epoch == found.epoch:
                    continue
                if not (yield from context.refresh(found.partition)):
                    return
                record = context.book.partitions.get(found.partition)
                if record is None or record.epoch == found.epoch:
                    continue
            deleted = yield DeleteConsumer(id=context.steps.take_id(), name=name)
            if isinstance(deleted, Done):
                event = ConsumerReconciled(consumer=name)
                context.tell(event)
                self._keep(event)

    def _look_at_progress(self) -> Script:
        context = self._context
        listed = yield ListKeys(id=context.steps.take_id(), prefix=DONE_PREFIX)
        if not isinstance(listed, KeyNames):
            return
        before, self._old_progress = self._old_progress, {}
        for key in listed.keys:
            if self._is_needed(key):
                continue
            read = yield ReadKey(id=context.steps.take_id(), key=key)
            if not isinstance(read, KeyRead) or read.value is None or self._is_needed(key):
                continue
            if before.get(key) != read.revision:
                self._old_progress[key] = read.revision
                continue
            if not (yield from context.refresh_key(LEADER_KEY)):
                return
            leader = context.book.leader
            if leader is None or leader.instance != context.settings.instance:
                return
            yield DeleteKey(id=context.steps.take_id(), key=key, revision=read.revision)

    def _is_needed(self, key: str) -> bool:
        """Whether saved progress belongs to somebody, or a record points to it, or soon may."""
        context, book = self._context, self._context.book
        holder = key.removeprefix(DONE_PREFIX)
        if holder in book.members or context.config.resize_to is not None:
            return True
        for number in range(context.num_partitions):
            record = book.partitions.get(number)
            if record is None or not context.is_current(record):
                return True
            if holder in (record.owner, record.next, record.done_from):
                return True
        return any(one.startswith(PARTITION_PREFIX) for one in book.too_new)
