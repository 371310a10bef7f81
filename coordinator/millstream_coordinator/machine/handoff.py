"""Change of owner: the six steps, whoever takes them.

======= ============================================ =============================================
step    what                                         by
======= ============================================ =============================================
1       learn the floor                              the owner that gives away (`release`), or the
2       compare-and-set ``part.<n>``: epoch + 1,     leader when that owner is dead or too slow
        new owner, floor                             (`take_away`)
3       delete the old consumer                      the new owner (`serve`)
4       create its own, from the floor on
5       read ``part.<n>`` again: still mine? else
        delete what was just made
6       pull, skipping what the done-set holds
======= ============================================ =============================================

Step 2 decides; everything before it may be repeated by anybody, everything after it is owed by
whom ``part.<n>`` names. So a crash between any two steps leaves either the old state, in which the
leader starts again at 1, or the new one, in which the new owner (or, if it is dead, the next
change) starts again at 3. Acks that arrive between 1 and 3 cause repeats, which a fenced sink
refuses.

The floor of step 2 is the highest of those that are true by themselves: the floor of the record
before, the owner's, and the old consumer's ack floor. A leader that takes away knows the owner's
only as far as it was saved, and so reads the consumer (CONSUMER.INFO). An owner that gives away
does not: a message passes into its own floor or done-set before it is acked, so its consumer has
nothing to add.

A graceful release waits only for handler calls that are running. What waits in lanes was not
touched and is left for the new owner, so a move takes as long as one handler call and not as long
as a backlog.

**What is on the way of a move**, from ``next`` written to the pull: the watch tells the owner; the
last ack is confirmed and the done-set saved, together; step 2; the watch tells the new owner; step
3 and reading the done-set, together; 4; 5; the pull's first request. Where two consumers may
overlap (a limits stream), 4 does not wait for 3 either, but 5 waits for both: nothing is pulled
while the old consumer may be there. Elsewhere the server refuses 4 before 3. Epoch 1 has none
before it, so a new group deletes nothing.

``done_from`` names whose ``done.<member>`` has the partition's newest done-set. It is handed on
unchanged past an owner that died before it saved anything. A release with nothing done above the
floor leaves None: there is nothing to read. After a resize it names what the leader wrote for it
(``done.=<epoch>-<i>``, see ``resize.py``).

Step 2 also says why (``cause``), and since when the partition is not served (``stopped_ns``): since
draining began, or since the dead owner was last heard. Everything else a record holds is kept.
"""

from dataclasses import replace

from ..errors import BadRecord
from ..events import Cause
from ..model import (
    DonePosition,
    DoneRecord,
    Message,
    PartitionRecord,
    PartitionState,
    decode,
    encode,
)
from ..naming import done_key, parse_consumer, partition_key
from ..ports import (
    ConsumerNames,
    ConsumerRead,
    CreateConsumer,
    DeleteConsumer,
    Done,
    DoubleAck,
    Failed,
    Failure,
    KeyRead,
    ListConsumers,
    Overlap,
    ReadConsumer,
    ReadKey,
    WriteKey,
    Written,
)
from .context import Context, Part
from .ownership import Holder, Ownership
from .steps import Key, Pause, Script

RETRY_S = 0.1
"""Pause before a failed step is tried again."""


def take_away(
    context: Context,
    partition: int,
    owner: str | None,
    instance: str | None,
    *,
    cause: str,
    stopped_ns: int,
) -> Script:
    """Steps 1 and 2 by the leader; ``owner`` None: nobody is there to take it.

    Does nothing if the record changed meanwhile: the leader looks at it again.
    """
    record = context.book.partitions[partition]
    revision = context.book.revision(partition_key(partition))
    floor = record.floor
    if context.has_stream:
        name = context.consumer(partition, record.epoch)
        info = yield ReadConsumer(id=context.steps.take_id(), name=name)
        if not isinstance(info, ConsumerRead):
            yield Pause(RETRY_S)
            return
        floor = max(floor, info.ack_floor)
    done_from = record.done_from
    if record.owner is not None and context.has_stream:
        saved = yield ReadKey(id=context.steps.take_id(), key=done_key(record.owner))
        if not isinstance(saved, KeyRead):
            yield Pause(RETRY_S)
            return
        position = saved_position(saved.value, partition, context.num_partitions)
        if position is not None and position.epoch == record.epoch:
            floor = max(floor, position.floor)
            done_from = record.owner
    new = _given_to(record, owner, instance, floor)
    new = replace(new, done_from=done_from, cause=cause, stopped_ns=stopped_ns)
    yield from write_partition(context, partition, new, revision)


def _given_to(
    record: PartitionRecord, owner: str | None, instance: str | None, floor: int
) -> PartitionRecord:
    return replace(
        record,
        epoch=record.epoch + 1,
        owner=owner,
        instance=instance,
        next=None,
        next_instance=None,
        floor=floor,
        state=PartitionState.FREE if owner is None else PartitionState.OWNED,
    )


def write_partition(
    context: Context, partition: int, record: PartitionRecord, revision: int
) -> Part:
    """Compare-and-set a partition's record; True if it is the record now.

    On a conflict, or when nobody knows, the record is read again, so the book is right either way.
    """
    key = partition_key(partition)
    value = encode(record)
    reply = yield WriteKey(id=context.steps.take_id(), key=key, value=value, revision=revision)
    if isinstance(reply, Written):
        context.note(key, value, reply.revision)
        return True
    if isinstance(reply, Failed):
        yield Pause(RETRY_S)
    yield from context.refresh(partition)
    return False


def release(owner: Holder, one: Ownership) -> Script:
    """Steps 1 and 2 by the owner, after its running handler calls have ended.

    Tried again until it succeeds; whoever sees that the record changed meanwhile abandons it.
    """
    while not (yield from _release_once(owner, one)):
        yield Pause(RETRY_S)


def _release_once(owner: Holder, one: Ownership) -> Part:
    context = owner.context
    sync = ("sync", one.partition)
    if context.has_stream and one.last_acked is not None:
        context.steps.start(sync, _sync_acks(context, one, one.last_acked), context.now)
    position = one.position()
    has_more = bool(position.done or position.children)
    if has_more and not (yield from owner.save()):
        return False
    if context.has_stream and one.last_acked is not None:
        yield from _until_ended(context, sync)
        if one.last_acked is not None:
            return (yield from context.refresh(one.partition)) and False
    record = context.book.partitions.get(one.partition)
    if record is None or record.epoch != one.epoch or record.state is not PartitionState.MOVING:
        return False
    floor = max(record.floor, position.floor)
    new = replace(
        _given_to(record, record.next, record.next_instance, floor),
        done_from=context.settings.member if has_more else None,
        stopped_ns=context.drained_ns(one.partition),
    )
    revision = context.book.revision(partition_key(one.partition))
    one.given_away = new
    return (yield from write_partition(context, one.partition, new, revision))


def _sync_acks(context: Context, one: Ownership, last: Message) -> Script:
    """Have the last ack confirmed, and so those before it; or nobody is there to take them."""
    acked = yield DoubleAck(id=context.steps.take_id(), message=last)
    if not isinstance(acked, Failed) or acked.reason is Failure.NO_RESPONDERS:
        one.last_acked = None


def _until_ended(context: Context, key: Key) -> Part:
    while key in context.steps:
        yield Pause(RETRY_S, key)
    return True


def raise_epoch(owner: Holder, one: Ownership, seen_epoch: int) -> Script:
    """A sink holds an effect of a higher epoch than the owner's, which only a lost bucket explains.

    If the record, read again, still names this owner, its epoch is raised above the sink's; the
    owner then begins anew under that one.
    """
    context = owner.context
    is_raised = False
    while not is_raised:
        while not (yield from context.refresh(one.partition)):
            yield Pause(RETRY_S)
        if not owner.is_mine(one):
            return
        record = context.book.partitions[one.partition]
        floor = max(record.floor, one.floor.floor)
        new = replace(
            record,
            epoch=seen_epoch + 1,
            floor=floor,
            cause=Cause.SINK_AHEAD,
            stopped_ns=context.wall_ns,
        )
        revision = context.book.revision(partition_key(one.partition))
        is_raised = yield from write_partition(context, one.partition, new, revision)


def raise_outdated(context: Context, partition: int) -> Script:
    """A bucket was made anew with epochs that had been before: go above those known here.

    For groups without a stream: there nothing but members bears witness of epochs (`survey.py`).
    """
    while context.is_outdated(partition):
        record = context.book.partitions[partition]
        new = replace(
            record,
            epoch=context.highest[partition].epoch + 1,
            stopped_ns=context.wall_ns,
        )
        revision = context.book.revision(partition_key(partition))
        yield from write_partition(context, partition, new, revision)


def serve(owner: Holder, one: Ownership, *, is_again: bool) -> Script:
    """Steps 3 to 6, until they succeed or the partition is somebody else's.

    ``is_again``: the consumer of this epoch may be there already (after a reconnect, a hole, or an
    attempt whose end is unknown) and is made anew.
    """
    while not (yield from _serve_once(owner, one, is_again)):
        is_again = True
        yield Pause(RETRY_S)


def _serve_once(owner: Holder, one: Ownership, is_again: bool) -> Part:
    context = owner.context
    own = context.consumer(one.partition, one.epoch)
    if is_again:
        if not (yield from context.refresh(one.partition)):
            return False
        if not owner.is_mine(one):
            return True
    if context.has_stream and not (yield from _make_consumer(context, one, own, is_again)):
        return False
    if not (yield from context.refresh(one.partition)):
        return False
    if not owner.is_mine(one):
        if context.has_stream:
            yield DeleteConsumer(id=context.steps.take_id(), name=own)
        return True
    owner.open(one)
    return True


def _make_consumer(context: Context, one: Ownership, own: str, is_again: bool) -> Part:
    old = [context.consumer(one.partition, one.epoch - 1)] if one.epoch > 1 else []
    if is_again:
        old.append(own)
    one.is_clear = not old
    clear = ("clear", one.partition)
    if old:
        context.steps.start(clear, _clear(context, one, old), context.now)
    if not one.has_progress and not (yield from _read_progress(context, one)):
        return False
    if is_again or not context.may_overlap:
        yield from _until_ended(context, clear)
        if not one.is_clear:
            return False
    if not (yield from _create(context, one, own)):
        return False
    yield from _until_ended(context, clear)
    return one.is_clear


def _clear(context: Context, one: Ownership, names: list[str]) -> Script:
    for name in names:
        deleted = yield DeleteConsumer(id=context.steps.take_id(), name=name)
        if not isinstance(deleted, Done):
            return
    one.is_clear = True


def _create(context: Context, one: Ownership, own: str) -> Part:
    for _ in range(2):
        made = yield CreateConsumer(
            id=context.steps.take_id(),
            name=own,
            partition=one.partition,
            start_seq=one.floor.floor + 1,
            level=context.num_partitions,
        )
        if isinstance(made, Done):
            return True
        if isinstance(made, Failed) and made.reason is Failure.TIMEOUT:
            # On a busy cluster it takes longer than one waits; deleting it would only add to that.
            info = yield ReadConsumer(id=context.steps.take_id(), name=own)
            return isinstance(info, ConsumerRead) and info.is_there and not info.delivered
        if not isinstance(made, Overlap):
            return False
        if not (yield from _delete_older(context, one)):
            return False
    return False


def _read_progress(context: Context, one: Ownership) -> Part:
    record = context.book.partitions.get(one.partition)
    if record is None or record.done_from is None:
        one.inherit(one.floor.floor, ())
        return True
    saved = yield ReadKey(id=context.steps.take_id(), key=done_key(record.done_from))
    if not isinstance(saved, KeyRead):
        return False
    position = saved_position(saved.value, one.partition, context.num_partitions)
    if position is None or position.epoch >= one.epoch:
        one.inherit(one.floor.floor, ())
    else:
        one.inherit(position.floor, position.done, position.children)
    return True


def _delete_older(context: Context, one: Ownership) -> Part:
    """Delete what is left of earlier epochs: on a work-queue stream it blocks the new consumer.

    After a resize that may be a consumer of any partition that shares subjects with this one.
    """
    config = context.config
    listed = yield ListConsumers(id=context.steps.take_id())
    if not isinstance(listed, ConsumerNames):
        return False
    for name in listed.names:
        found = parse_consumer(context.settings.group, name)
        if found is None or found.epoch >= one.epoch:
            continue
        is_over = found.epoch <= config.base_epoch
        is_relative = (found.partition - one.partition) % min(config.levels or (1,)) == 0
        if found.partition != one.partition and not (is_over and is_relative):
            continue
        deleted = yield DeleteConsumer(id=context.steps.take_id(), name=name)
        if not isinstance(deleted, Done):
            return False
    return True


def saved_position(value: bytes | None, partition: int, level: int = 0) -> DonePosition | None:
    """Return one partition's progress from a ``done.<member>`` value; None if it has none."""
    return saved_positions(value, level).get(partition)


def saved_positions(value: bytes | None, level: int = 0) -> dict[int, DonePosition]:
    """Return all progress a ``done.<member>`` value holds; a value that is none holds nothing.

    ``level``: only of so many partitions. With another number of them, partition 0 is another one,
    and a floor of it would pass messages nobody handled; 0: of any.
    """
    if value is None:
        return {}
    try:
        found = decode(DoneRecord, value).partitions
    except BadRecord:
        return {}
    return {n: it for n, it in found.items() if not level or it.level in (0, level)}
