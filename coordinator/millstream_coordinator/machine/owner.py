"""What this member owns: handler calls, acks, fencing, saving, and what the bucket says about it.

The bucket decides. `settle` compares a partition's record with what is owned here and does what
follows: begin (the record names this process), drain (``next`` is set), go on (a move was called
off), or lose (the record names somebody else, or another epoch).

**Fencing.** Before each handler call and each ack this member asks itself whether its ownership
could be confirmed within the heartbeat timeout. If not, nothing is started and nothing acked; lanes
keep what they have. When a heartbeat comes back again, each partition's record is read anew, and
where it still names this epoch work goes on as if nothing had been. A handler call that ended in
between has its ack held back until then. ``409 Consumer Deleted`` or no responders on a partition's
pull put that one partition in the same doubt.

**Saving.** ``done.<member>`` is one value for all partitions of the member, written at most every
``save_interval_s`` (or ``save_every`` messages) while something changed. It also carries on what it
last said of partitions given away, as long as their records point here.
"""

from collections import deque

from ..errors import BadRecord
from ..events import (
    Fenced,
    MessageRetried,
    PartitionAssigned,
    PartitionLost,
    PartitionRevoked,
    Unfenced,
)
from ..model import (
    DonePosition,
    DoneRecord,
    Message,
    PartitionRecord,
    PartitionState,
    decode,
    encode,
)
from ..naming import done_key, partition_key
from ..ports import (
    Ack,
    ClosePull,
    ConsumerRead,
    Delivered,
    Handle,
    Handled,
    KeyRead,
    OpenPull,
    PullEnded,
    PullIdle,
    ReadConsumer,
    ReadKey,
    WriteKey,
    Written,
)
from .context import Context, Part
from .handoff import RETRY_S, raise_epoch, release, serve
from .ownership import Ownership, OwnershipState
from .steps import Pause, Script


class Owner:
    """The partitions of one member."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.owned: dict[int, Ownership] = {}
        self._by_pull: dict[int, Ownership] = {}
        self._last_pull = 0
        self._ready: deque[Ownership] = deque()
        self._num_running = 0
        self._is_fenced = True
        self._was_confirmed = False
        self._carried: dict[int, DonePosition] = {}
        self._num_unsaved = 0
        self._saved_at = float("-inf")
        self._audit_at = float("inf")

    @property
    def num_running(self) -> int:
        """Handler calls under way."""
        return self._num_running

    # ---- what the bucket says ----

    def is_mine(self, one: Ownership) -> bool:
        """Whether the book's record still names this process under this epoch."""
        record = self.context.book.partitions.get(one.partition)
        return record is not None and self.context.is_mine(record) and record.epoch == one.epoch

    def settle(self, partition: int) -> None:
        """Do what the partition's record asks of this member."""
        record = self.context.book.partitions.get(partition)
        one = self.owned.get(partition)
        if one is not None and not self.is_mine(one):
            if record is not None and record == one.given_away:
                self._revoke(one)
            else:
                self._lose(one)
            one = None
        self._drop_carried(partition, record)
        if record is None or not self.context.is_mine(record):
            return
        if one is None:
            self._begin(partition, record.epoch, record.floor)
        elif record.state is PartitionState.MOVING:
            if one.state is OwnershipState.SERVING:
                self._drain(one)
        elif one.state is OwnershipState.DRAINING:
            one.state = OwnershipState.STARTING
            self._serve_again(one)

    def _drop_carried(self, partition: int, record: PartitionRecord | None) -> None:
        """Forget saved progress that no record can point to any more.

        One of the current epoch may still be pointed to: by the next change of owner, when this is
        a new process under the old one's name and the old one's partitions are yet to be moved.
        """
        position = self._carried.get(partition)
        if position is None or (record is not None and position.epoch >= record.epoch):
            return
        if record is None or record.done_from != self.context.settings.member:
            del self._carried[partition]

    def _begin(self, partition: int, epoch: int, floor: int) -> None:
        one = Ownership(partition, epoch, floor)
        self.owned[partition] = one
        self._start(one, serve(self, one, is_again=False))

    def open(self, one: Ownership) -> None:
        """Step 6: pull from the consumer that was just made."""
        settings = self.context.settings
        if self.context.has_stream:
            self._last_pull += 1
            one.open(self._last_pull, self.context.now + settings.timing.ack_wait_s / 2)
            self._by_pull[self._last_pull] = one
            name = self.context.consumer(one.partition, one.epoch)
            self.context.out.append(
                OpenPull(pull=self._last_pull, name=name, partition=one.partition, epoch=one.epoch)
            )
        one.is_held = False
        one.state = OwnershipState.SERVING
        if not one.is_told:
            one.is_told = True
            self.context.tell(PartitionAssigned(partition=one.partition, epoch=one.epoch))
        self._note_ready(one)
        self.context.changed.append(partition_key(one.partition))

    def _drain(self, one: Ownership) -> None:
        one.state = OwnershipState.DRAINING
        self.context.steps.cancel(("own", one.partition))
        self._close_pull(one)
        one.lanes.drop_waiting()
        self._release_if_drained(one)

    def _release_if_drained(self, one: Ownership) -> None:
        if one.state is OwnershipState.DRAINING and not one.lanes.num_running:
            self._start(one, release(self, one))

    def _revoke(self, one: Ownership) -> None:
        self._carried[one.partition] = one.position()
        self._forget(one)
        self.context.tell(PartitionRevoked(partition=one.partition, epoch=one.epoch))

    def _lose(self, one: Ownership) -> None:
        self._carried[one.partition] = one.position()
        self._forget(one)
        self.context.tell(PartitionLost(partition=one.partition, epoch=one.epoch))

    def _forget(self, one: Ownership) -> None:
        self._close_pull(one)
        self.context.steps.cancel(("own", one.partition))
        del self.owned[one.partition]

    def _start(self, one: Ownership, script: Script) -> None:
        self.context.steps.start(("own", one.partition), script, self.context.now)

    def _serve_again(self, one: Ownership) -> None:
        self._close_pull(one)
        self._start(one, serve(self, one, is_again=True))

    def _close_pull(self, one: Ownership) -> None:
        if one.pull is not None:
            self.context.out.append(ClosePull(pull=one.pull))
            self._by_pull.pop(one.pull, None)
            one.pull = None

    # ---- what the consumers say ----

    def on_delivered(self, event: Delivered) -> None:
        """Take messages of a pull."""
        self._fence()
        one = self._by_pull.get(event.pull)
        if one is None:
            return
        acks: list[Message] = []
        is_whole = one.deliver(event.messages, acks)
        if self._may_not_ack(one):
            one.held_acks.extend(acks)
        else:
            self.context.out.extend(Ack(message=message) for message in acks)
        self._num_unsaved += len(acks)
        self._note_ready(one)
        if not is_whole:
            self._serve_again(one)

    def on_idle(self, event: PullIdle) -> None:
        """Compare the server's last delivery with ours: a hole at the end shows in nothing else."""
        one = self._by_pull.get(event.pull)
        if one is not None and event.consumer_seq != one.consumer_seq:
            self._serve_again(one)

    def on_ended(self, event: PullEnded) -> None:
        """The consumer is gone: perhaps the partition is, too."""
        one = self._by_pull.get(event.pull)
        if one is not None:
            one.is_held = True
            self._serve_again(one)

    def on_connection_lost(self) -> None:
        """Pulls are gone; lanes go on until the fence."""
        for one in self.owned.values():
            self._close_pull(one)

    def on_connection_back(self) -> None:
        """Make every consumer anew: nobody knows which deliveries and acks got through."""
        for one in self.owned.values():
            if one.state is OwnershipState.SERVING:
                self._serve_again(one)

    def hold_all(self) -> None:
        """Nobody knows any more whose the partitions are: start and ack nothing."""
        for one in self.owned.values():
            one.is_held = True

    def resume(self) -> None:
        """Take up again what joining anew abandoned: its scripts are gone, its ownerships not."""
        for one in list(self.owned.values()):
            if ("own", one.partition) in self.context.steps:
                continue
            if one.state is OwnershipState.DRAINING:
                self._release_if_drained(one)
            else:
                self._serve_again(one)

    def close(self) -> None:
        """Stop pulling everything, for good."""
        for one in self.owned.values():
            self._close_pull(one)

    # ---- handler calls ----

    def dispatch(self) -> None:
        """Start handler calls while there is room and no doubt."""
        if self.context.is_fenced:
            return
        limit = self.context.settings.limits.max_lanes
        while self._ready and self._num_running < limit:
            one = self._ready.popleft()
            one.is_queued = False
            if self.owned.get(one.partition) is not one or not one.is_serving:
                continue
            message = one.lanes.start()
            if message is None:
                continue
            self._num_running += 1
            self.context.out.append(Handle(messages=(message,)))
            self._note_ready(one)

    def _note_ready(self, one: Ownership) -> None:
        if one.lanes.has_ready and not one.is_queued:
            one.is_queued = True
            self._ready.append(one)

    def on_handled(self, event: Handled) -> None:
        """A handler call ended."""
        # A fence between two ticks is one as well: what it holds back is let go by its end.
        self._fence()
        self._num_running -= 1
        message = event.message
        one = self.owned.get(message.partition)
        if one is None or one.lanes.find(message.seq) is not message:
            return
        if event.error is not None:
            self._retry(one, message, event.error)
            if event.seen_epoch is not None and one.state is OwnershipState.SERVING:
                one.is_held = True
                self._start(one, raise_epoch(self, one, event.seen_epoch))
        else:
            one.lanes.finish(message)
            one.floor.complete(message.seq)
            self._num_unsaved += 1
            if self._may_not_ack(one):
                one.held_acks.append(message)
            else:
                self._ack(one, message)
        self._note_ready(one)
        self._release_if_drained(one)

    def _retry(self, one: Ownership, message: Message, error: str) -> None:
        timing = self.context.settings.timing
        delay_s = min(timing.retry_min_s * 2 ** (message.attempt - 1), timing.retry_max_s)
        self.context.tell(
            MessageRetried(
                partition=one.partition,
                seq=message.seq,
                attempt=message.attempt,
                delay_s=delay_s,
                error=error,
            )
        )
        message.attempt += 1
        one.lanes.retry(message, self.context.now + delay_s)
        if one.state is OwnershipState.DRAINING:
            one.lanes.drop_waiting()

    def _ack(self, one: Ownership, message: Message) -> None:
        if self.context.has_stream:
            self.context.out.append(Ack(message=message))
            one.last_acked = message

    def _may_not_ack(self, one: Ownership) -> bool:
        return self.context.is_fenced or one.is_held

    # ---- time ----

    def tick(self) -> None:
        """Fence, confirm, wake lanes, save, audit."""
        self._fence()
        now = self.context.now
        for one in self.owned.values():
            if one.lanes.next_wake_s is not None and one.lanes.next_wake_s <= now:
                one.lanes.wake(now)
                self._note_ready(one)
        if not self._is_fenced:
            self._progress()
            self._audit()
            if self._num_unsaved and "save" not in self.context.steps and self._is_save_due():
                self._saved_at = now
                self.context.steps.start("save", self._save_script(), now)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        timing = self.context.settings.timing
        wakes = [one.lanes.next_wake_s for one in self.owned.values()]
        deadline = min((at for at in wakes if at is not None), default=float("inf"))
        if self._is_fenced:
            return deadline
        deadline = min(deadline, self._audit_at)
        deadline = min(deadline, self.context.confirmed_at + timing.heartbeat_timeout_s + 1e-6)
        for one in self.owned.values():
            if one.pull is not None:
                deadline = min(deadline, one.progress_at)
        if self._num_unsaved and "save" not in self.context.steps:
            deadline = min(deadline, self._saved_at + timing.save_interval_s)
        return deadline

    def _fence(self) -> None:
        is_fenced = self.context.is_fenced
        if is_fenced is self._is_fenced:
            return
        self._is_fenced = is_fenced
        if is_fenced:
            for one in self.owned.values():
                one.is_held = True
            self.context.tell(Fenced(member=self.context.settings.member))
            return
        if self._was_confirmed:
            self.context.tell(Unfenced(member=self.context.settings.member))
        self._was_confirmed = True
        for one in self.owned.values():
            if one.state is not OwnershipState.SERVING:
                one.is_held = False
            elif ("own", one.partition) not in self.context.steps:
                self._start(one, self._recheck(one))

    def _recheck(self, one: Ownership) -> Script:
        while not (yield from self.context.refresh(one.partition)):
            yield Pause(RETRY_S)
        if not self.is_mine(one) or self.context.is_fenced:
            return
        if one.pull is None and self.context.has_stream:
            yield from serve(self, one, is_again=True)
            return
        one.is_held = False
        for message in one.held_acks:
            self._ack(one, message)
        one.held_acks.clear()
        self._note_ready(one)

    def _progress(self) -> None:
        now = self.context.now
        for one in self.owned.values():
            if one.pull is not None and now >= one.progress_at:
                one.progress_at = now + self.context.settings.timing.ack_wait_s / 2
                self.context.out.extend(
                    Ack(message=message, is_progress=True) for message in one.lanes.all()
                )

    def _audit(self) -> None:
        now = self.context.now
        if not self.owned or not self.context.has_stream:
            self._audit_at = float("inf")
            return
        if self._audit_at == float("inf"):
            self._audit_at = now + self.context.settings.timing.audit_interval_s
        if now < self._audit_at:
            return
        self._audit_at = now + self.context.settings.timing.audit_interval_s
        for one in self.owned.values():
            if one.is_serving and one.pull is not None:
                self.context.steps.start(("audit", one.partition), self._audit_script(one), now)

    def _audit_script(self, one: Ownership) -> Script:
        """Look for acks that got lost: they take room that only ``ack_wait`` would give back."""
        floor_before, one.audited_floor = one.audited_floor, one.floor.floor
        pull = one.pull
        name = self.context.consumer(one.partition, one.epoch)
        info = yield ReadConsumer(id=self.context.steps.take_id(), name=name)
        if not isinstance(info, ConsumerRead) or one.pull != pull or floor_before is None:
            return
        is_lost = info.ack_floor < floor_before and info.num_ack_pending > one.floor.num_waiting
        if not info.is_there or (info.delivered and is_lost):
            self._serve_again(one)

    def _is_save_due(self) -> bool:
        timing = self.context.settings.timing
        is_time = self.context.now >= self._saved_at + timing.save_interval_s
        return is_time or self._num_unsaved >= timing.save_every

    def _save_script(self) -> Script:
        if not (yield from self.save()):
            self._num_unsaved += 1

    def save(self) -> Part:
        """Write ``done.<member>``; False: not written, to be tried again."""
        context = self.context
        self._num_unsaved = 0
        partitions = dict(self._carried)
        partitions.update({n: one.position() for n, one in self.owned.items() if one.has_progress})
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
