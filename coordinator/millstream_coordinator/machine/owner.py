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

**Handler calls.** `dispatch` hands out what is ready, as far as there is room for calls. An edge
that handles many messages between two steps takes them instead (``takes_calls``): `next_call` gives
what may begin now, `handled` books what returned and gives the next one, and `dispatch` once per
round of its loop lets the acks go out together. None of that touches the rest of the machine.

**Detours.** A message of a parked key, one that an operator wants skipped, and one whose key is
being replayed do not go to the handler (failure.py, parking.py). A paused partition has no pull and
hands nothing out; a stopped one hands nothing out.
"""

from collections import deque

from ..events import (
    Fenced,
    MessageGivenUp,
    MessageRetried,
    PartitionAssigned,
    PartitionLost,
    PartitionResumed,
    PartitionRevoked,
    PartitionStopped,
    Unfenced,
)
from ..model import (
    FailurePolicy,
    LetterReason,
    Message,
    ParkedRecord,
    PartitionRecord,
    PartitionState,
)
from ..naming import partition_key
from ..ports import (
    Ack,
    Acks,
    ClosePull,
    ConsumerRead,
    Delivered,
    Done,
    Enter,
    Entered,
    Failed,
    Failure,
    Flush,
    Flushed,
    Handle,
    Handled,
    OpenPull,
    PullEnded,
    PullIdle,
    ReadConsumer,
)
from . import failure, parking
from .context import Context, Part
from .handoff import RETRY_S, raise_epoch, release, serve
from .lanes import lane_key
from .ownership import GivenUp, Ownership, OwnershipState
from .saving import Saving
from .steps import Pause, Script

NEVER = float("inf")


class Owner:
    """The partitions of one member."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.owned: dict[int, Ownership] = {}
        self.saving = Saving(context, self.owned)
        self._by_pull: dict[int, Ownership] = {}
        self._last_pull = 0
        self._ready: deque[Ownership] = deque()
        self._asleep: set[Ownership] = set()
        """Those with lanes, or a batch, that wait for a moment."""
        self._acks: list[Message] = []
        self._drained: list[Ownership] = []
        self._num_running = 0
        self._is_put_down = False
        self._is_fenced = True
        self._was_confirmed = False
        self._audit_at = NEVER
        self._progress_at = NEVER

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
        self.saving.drop_carried(partition, record)
        if record is None or not self.context.is_mine(record):
            return
        if one is None:
            self._begin(record, partition)
            return
        self._obey(one, record)
        if record.state is PartitionState.MOVING:
            if one.state is OwnershipState.SERVING:
                self._drain(one)
        elif one.state is OwnershipState.DRAINING:
            self.context.note_draining(partition, is_draining=False)
            one.state = OwnershipState.STARTING
            self.serve_again(one)

    def _begin(self, record: PartitionRecord, partition: int) -> None:
        one = Ownership(partition, record.epoch, record.floor, self.context.settings.group)
        one.is_entered = not self.context.settings.has_hooks
        one.is_stopped = record.stopped_seq is not None
        one.skip_seq = record.skip_seq
        one.is_paused = self._is_paused(partition)
        self.owned[partition] = one
        self.context.note_draining(partition, is_draining=False)
        self._start(one, self._serve(one, is_again=False))

    def _serve(self, one: Ownership, *, is_again: bool) -> Script:
        """Steps 3 to 6; what is parked is known before the pull."""
        if self.context.settings.config.on_failure is not FailurePolicy.RETRY:
            while not one.knows_parked and not (yield from parking.claim(self, one)):
                yield Pause(RETRY_S)
        yield from serve(self, one, is_again=is_again)

    def _obey(self, one: Ownership, record: PartitionRecord) -> None:
        """Stop, go on, or skip, as the record says."""
        one.skip_seq = record.skip_seq
        if record.stopped_seq is not None:
            one.is_stopped = True
        elif one.is_stopped and ("stop", one.partition) not in self.context.steps:
            one.is_stopped = False
            self.context.tell(PartitionResumed(partition=one.partition))
            message, one.stopped_by = one.stopped_by, None
            if message is not None:
                message.attempt = 1
                one.lanes.let_go(lane_key(message))
            self._note_ready(one)

    def on_control(self) -> None:
        """Pause and resume what operators asked for."""
        for one in list(self.owned.values()):
            is_paused = self._is_paused(one.partition)
            if is_paused is one.is_paused:
                continue
            one.is_paused = is_paused
            if is_paused:
                self._close_pull(one)
            elif one.state is OwnershipState.SERVING:
                self.serve_again(one)

    def _is_paused(self, partition: int) -> bool:
        control = self.context.book.control
        return self._is_put_down or control.is_paused or partition in control.paused

    def put_down(self) -> None:
        """Leave the partitions for a while, without giving them away: this process ends.

        Nothing is pulled or handed out any more; calls under way end, and then what the user keeps
        per partition is flushed.
        """
        self._is_put_down = True
        self.on_control()
        for one in list(self.owned.values()):
            self._release_if_drained(one)

    @property
    def is_put_down(self) -> bool:
        """Whether nothing is left to wait for after `put_down`."""
        has_hooks = self.context.settings.has_hooks
        return not self._num_running and not any(
            one.num_running
            or one.state is OwnershipState.DRAINING
            or (has_hooks and one.is_entered and not one.is_flushed)
            for one in self.owned.values()
        )

    def open(self, one: Ownership) -> None:
        """Step 6: pull from the consumer that was just made."""
        settings = self.context.settings
        if self.context.has_stream and one.is_paused:
            one.held_acks.clear()
        elif self.context.has_stream:
            self._last_pull += 1
            one.open(self._last_pull, self.context.now + settings.timing.ack_wait_s / 2)
            self._progress_at = min(self._progress_at, one.progress_at)
            self._by_pull[self._last_pull] = one
            name = self.context.consumer(one.partition, one.epoch)
            self.context.out.append(
                OpenPull(pull=self._last_pull, name=name, partition=one.partition, epoch=one.epoch)
            )
        one.is_held = False
        one.state = OwnershipState.SERVING
        if not one.is_told:
            one.is_told = True
            record = self.context.book.partitions.get(one.partition)
            self.context.tell(
                PartitionAssigned(
                    partition=one.partition,
                    epoch=one.epoch,
                    cause="" if record is None else record.cause,
                    stopped_s=self.context.standstill_s(record),
                )
            )
            if settings.has_hooks:
                self.context.out.append(Enter(partition=one.partition, epoch=one.epoch))
        self._replay(one)
        self._note_ready(one)
        self.context.changed.append(partition_key(one.partition))

    def on_entered(self, event: Entered) -> None:
        """What the user keeps for a partition is open: its messages may be handled."""
        one = self.owned.get(event.partition)
        if one is not None and one.epoch == event.epoch:
            one.is_entered = True
            self._note_ready(one)

    def on_flushed(self, event: Flushed) -> None:
        """… is flushed: the partition may be given away."""
        one = self.owned.get(event.partition)
        if one is not None and one.epoch == event.epoch and one.is_flushing:
            one.is_flushing = False
            one.is_flushed = not one.must_flush_again
            one.must_flush_again = False
            self._release_if_drained(one)

    def _drain(self, one: Ownership) -> None:
        one.state = OwnershipState.DRAINING
        one.is_flushed = False
        one.must_flush_again = one.is_flushing
        self.context.note_draining(one.partition, is_draining=True)
        self.context.steps.cancel(("own", one.partition))
        self._stop_replays(one)
        self._close_pull(one)
        one.lanes.drop_waiting()
        self._release_if_drained(one)

    def _release_if_drained(self, one: Ownership) -> None:
        is_draining = one.state is OwnershipState.DRAINING
        if one.num_running or not (is_draining or self._is_put_down):
            return
        if self.context.settings.has_hooks and one.is_entered and not one.is_flushed:
            if not one.is_flushing:
                one.is_flushing = True
                self.context.out.append(Flush(partition=one.partition, epoch=one.epoch))
            return
        if is_draining:
            self._send_acks()
            self._start(one, release(self, one))

    def _revoke(self, one: Ownership) -> None:
        self._forget(one)
        self.context.tell(PartitionRevoked(partition=one.partition, epoch=one.epoch))

    def _lose(self, one: Ownership) -> None:
        self._forget(one)
        self.context.tell(PartitionLost(partition=one.partition, epoch=one.epoch))

    def _forget(self, one: Ownership) -> None:
        self.saving.carry(one)
        self._close_pull(one)
        self._stop_replays(one)
        for seq in one.given_up:
            self.context.steps.cancel(("letter", one.partition, seq))
        for key in (("own", one.partition), ("stop", one.partition)):
            self.context.steps.cancel(key)
        self._asleep.discard(one)
        del self.owned[one.partition]

    def _start(self, one: Ownership, script: Script) -> None:
        self.context.steps.start(("own", one.partition), script, self.context.now)

    def serve_again(self, one: Ownership) -> None:
        """Make the consumer anew from the floor."""
        self._close_pull(one)
        self._start(one, self._serve(one, is_again=True))

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
        one.num_pending = event.num_pending
        is_whole = one.deliver(event.messages, acks)
        if self._may_not_ack(one):
            one.held_acks.extend(acks)
        else:
            self._acks.extend(acks)
        self.saving.num_unsaved += len(acks)
        self._note_ready(one)
        if not is_whole:
            self.serve_again(one)

    def on_idle(self, event: PullIdle) -> None:
        """Compare the server's last delivery with ours: a hole at the end shows in nothing else."""
        one = self._by_pull.get(event.pull)
        if one is not None and event.consumer_seq != one.consumer_seq:
            self.serve_again(one)

    def on_ended(self, event: PullEnded) -> None:
        """The consumer is gone: perhaps the partition is, too."""
        one = self._by_pull.get(event.pull)
        if one is not None:
            one.is_held = True
            self.serve_again(one)

    def on_connection_lost(self) -> None:
        """Pulls are gone; lanes go on until the fence."""
        for one in self.owned.values():
            self._close_pull(one)

    def on_connection_back(self) -> None:
        """Make every consumer anew: nobody knows which deliveries and acks got through."""
        for one in self.owned.values():
            if one.state is OwnershipState.SERVING:
                self.serve_again(one)

    def hold_all(self) -> None:
        """Nobody knows any more whose the partitions are: start and ack nothing."""
        for one in self.owned.values():
            one.is_held = True

    def resume(self) -> None:
        """Take up again what joining anew abandoned: its scripts are gone, its ownerships not."""
        steps = self.context.steps
        for one in list(self.owned.values()):
            for given_up in one.given_up.values():
                if ("letter", one.partition, given_up.message.seq) not in steps:
                    self._store(one, given_up)
            if one.stopped_by is not None and ("stop", one.partition) not in steps:
                self._write_stop(one, one.stopped_by.seq)
            for token in list(one.replaying):
                if ("replay", one.partition, token) not in steps:
                    self._start_replay(one, token)
            if ("own", one.partition) in steps:
                continue
            if one.state is OwnershipState.DRAINING:
                self._release_if_drained(one)
            else:
                self.serve_again(one)

    def close(self) -> None:
        """Stop pulling everything, for good."""
        self._send_acks()
        for one in self.owned.values():
            self._close_pull(one)

    # ---- handler calls ----

    def dispatch(self) -> None:
        """Start handler calls while there is room and no doubt; let out what was gathered."""
        self._send_acks()
        self._release_drained()
        if self.context.is_fenced or self.context.settings.takes_calls:
            return
        while (messages := self._next_messages()) is not None:
            self.context.out.append(Handle(messages=messages))

    @property
    def num_callable(self) -> int:
        """How many calls there is work and room for."""
        room = self.context.settings.limits.max_lanes - self._num_running
        if room <= 0 or self._is_fenced:
            return 0
        count = 0
        for one in self._ready:
            count += one.lanes.num_ready
            if count >= room:
                return room
        return count

    def next_call(self) -> tuple[Message, ...] | None:
        """Take the messages of a call that begins now; None: there is none, or no room.

        What it changes goes out with the next `dispatch`, as with `handled`.
        """
        if self.context.is_fenced is not self._is_fenced:
            self._fence()
        return None if self._is_fenced else self._next_messages()

    def _next_messages(self) -> tuple[Message, ...] | None:
        if self.context.settings.limits.batch_messages > 1:
            return self._next_batch()
        message = self._next()
        return None if message is None else (message,)

    def may_begin(self, message: Message) -> bool:
        """Whether a call that was handed out may still begin."""
        one = self.owned.get(message.partition)
        return (
            one is not None
            and one.epoch == message.epoch
            and one.is_serving
            and not self.context.is_fenced
        )

    def handled(self, message: Message) -> Message | None:
        """Book a call that returned, and hand out the next message, if one is ready.

        What it changes goes out with the next `dispatch`.
        """
        if self.context.is_fenced is not self._is_fenced:
            self._fence()
        self._num_running -= 1
        one = self.owned.get(message.partition)
        if one is not None and one.lanes.find(message.seq) is message:
            self._complete(one, message)
            self._note_ended(one)
        elif one is not None:
            self._end_replayed(one, Handled(message=message))
        return None if self._is_fenced else self._next()

    def _note_ended(self, one: Ownership) -> None:
        if one.state is OwnershipState.DRAINING or self._is_put_down:
            self._drained.append(one)

    def _release_drained(self) -> None:
        drained, self._drained = self._drained, []
        for one in drained:
            is_owned = self.owned.get(one.partition) is one
            if is_owned and ("own", one.partition) not in self.context.steps:
                self._release_if_drained(one)

    def _next(self) -> Message | None:
        """Take the next message to handle; those that go elsewhere are sent on their way."""
        ready, limit = self._ready, self.context.settings.limits.max_lanes
        while ready and self._num_running < limit:
            one = ready[0]
            message = None
            if self.owned.get(one.partition) is one and one.is_serving:
                message = one.lanes.start()
            if message is None or not one.lanes.has_ready:
                ready.popleft()
                one.is_queued = False
            elif len(ready) > 1:
                ready.rotate(-1)
            if message is None:
                continue
            if one.has_detours and self._detour(one, message):
                continue
            self._num_running += 1
            return message
        return None

    def _next_batch(self) -> tuple[Message, ...] | None:
        limits = self.context.settings.limits
        for _ in range(len(self._ready)):
            if self._num_running >= limits.max_lanes:
                return None
            one = self._ready.popleft()
            one.is_queued = False
            if self.owned.get(one.partition) is not one or not one.is_serving:
                continue
            if one.has_detours:
                message = one.lanes.start()
                self._note_ready(one)
                if message is None or self._detour(one, message):
                    continue
                batch = [message]
            elif self._waits_for_more(one):
                continue
            else:
                one.batch_since, one.is_batch_due = None, False
                batch = one.lanes.start_batch(limits.batch_messages)
                self._note_ready(one)
            if batch:
                self._num_running += 1
                one.batches[batch[0].seq] = tuple(batch)
                return tuple(batch)
        return None

    def _waits_for_more(self, one: Ownership) -> bool:
        limits = self.context.settings.limits
        head = one.lanes.peek()
        is_full = len(one.lanes) - one.lanes.num_running >= limits.batch_messages
        is_due = is_full or one.is_batch_due or limits.batch_wait_s <= 0
        if is_due or head is None or head.attempt > 1:
            return False
        if one.batch_since is None:
            one.batch_since = self.context.now
            self._asleep.add(one)
        return True

    def _note_ready(self, one: Ownership) -> None:
        if not one.is_queued and one.lanes.has_ready:
            one.is_queued = True
            self._ready.append(one)

    def on_handled(self, event: Handled) -> None:
        """A handler call ended."""
        # A fence between two ticks is one as well: what it holds back is let go by its end.
        self._fence()
        self._num_running -= 1
        message = event.message
        one = self.owned.get(message.partition)
        if one is None:
            return
        if one.lanes.find(message.seq) is not message:
            self._end_replayed(one, event)
            return
        batch = one.batches.pop(message.seq, (message,))
        if not event.is_called:
            for each in reversed(batch):
                one.lanes.put_back(each)
        elif event.error is not None:
            self._fail(one, batch, event)
        else:
            for each in batch:
                self._complete(one, each)
        if one.state is OwnershipState.DRAINING:
            one.lanes.drop_waiting()
        self._note_ready(one)
        self._release_if_drained(one)

    def _complete(self, one: Ownership, message: Message) -> None:
        one.lanes.finish(message)
        one.floor.complete(message.seq)
        self.saving.num_unsaved += 1
        if one.is_held or self._is_fenced:
            one.held_acks.append(message)
        elif self.context.has_stream:
            self._acks.append(message)
        self._note_ready(one)

    def _may_not_ack(self, one: Ownership) -> bool:
        return self.context.is_fenced or one.is_held

    def _send_acks(self) -> None:
        """Let the acks go, unless there came a doubt since they were gathered."""
        if not self._acks:
            return
        acks, self._acks = self._acks, []
        is_fenced = self.context.is_fenced
        may_go: list[Message] = []
        one: Ownership | None = None
        partition = -1
        for message in acks:
            if message.partition != partition:
                partition = message.partition
                one = self.owned.get(partition)
            if one is None or one.epoch != message.epoch:
                if not is_fenced:
                    may_go.append(message)
            elif is_fenced or one.is_held:
                one.held_acks.append(message)
            else:
                one.last_acked = message
                may_go.append(message)
        if may_go:
            self.context.out.append(Acks(tuple(may_go)))

    # ---- failures ----

    def _fail(self, one: Ownership, batch: tuple[Message, ...], event: Handled) -> None:
        config = self.context.settings.config
        message = batch[0]
        error = failure.error_line(event.error or "")
        is_over = config.on_failure is not FailurePolicy.RETRY and len(batch) == 1
        is_over = is_over and message.attempt >= config.max_attempts
        if event.seen_epoch is not None:
            self._retry(one, batch, error, is_attempt=False)
            if one.state is OwnershipState.SERVING:
                one.is_held = True
                self._start(one, raise_epoch(self, one, event.seen_epoch))
        elif not is_over:
            self._retry(one, batch, error, is_attempt=True)
        elif config.on_failure is FailurePolicy.STOP or self._is_full_of_parked(one):
            self._stop(one, message, error)
        else:
            # Without a key there is nothing that would have to wait behind it.
            is_parking = config.on_failure is FailurePolicy.PARK and message.key is not None
            reason = LetterReason.PARK if is_parking else LetterReason.DEAD_LETTER
            self._store(one, GivenUp(message, failure.letter_token(message), reason, error))

    def _is_full_of_parked(self, one: Ownership) -> bool:
        is_parking = self.context.settings.config.on_failure is FailurePolicy.PARK
        return is_parking and len(one.parked) >= self.context.settings.limits.max_parked_keys

    def _retry(
        self, one: Ownership, batch: tuple[Message, ...], error: str, *, is_attempt: bool
    ) -> None:
        message = batch[0]
        delay_s = failure.retry_delay_s(self.context.settings.timing, message.attempt, message.seq)
        self.context.tell(
            MessageRetried(
                partition=one.partition,
                seq=message.seq,
                attempt=message.attempt,
                delay_s=delay_s,
                error=error,
            )
        )
        if is_attempt:
            for each in batch:
                each.attempt += 1
        one.lanes.retry_batch(batch, self.context.now + delay_s)
        self._asleep.add(one)

    def _detour(self, one: Ownership, message: Message) -> bool:
        """Send a message that was started where it belongs, if that is not the handler."""
        if message.seq == one.skip_seq:
            error = "skipped by an operator"
            token = failure.letter_token(message)
            self._store(one, GivenUp(message, token, LetterReason.SKIP, error))
            return True
        token = failure.letter_token(message)
        if token in one.replaying:
            one.lanes.hold(message)
            one.replaying[token] = lane_key(message)
            return True
        if token in one.parked:
            error = f"waits behind message {one.parked[token]} of its key"
            self._store(one, GivenUp(message, token, LetterReason.PARK, error))
            return True
        return False

    def _store(self, one: Ownership, given_up: GivenUp) -> None:
        one.given_up[given_up.message.seq] = given_up
        is_parking = given_up.reason is LetterReason.PARK
        script = (parking.park if is_parking else failure.store)(self, one, given_up)
        key = ("letter", one.partition, given_up.message.seq)
        self.context.steps.start(key, script, self.context.now)

    def letter_stored(self, one: Ownership, given_up: GivenUp) -> None:
        """A message is among the letters: for the partition's books it is handled."""
        message = given_up.message
        del one.given_up[message.seq]
        self._complete(one, message)
        self.context.tell(
            MessageGivenUp(
                partition=one.partition,
                seq=message.seq,
                reason=given_up.reason.value,
                attempts=message.attempt,
                error=given_up.error,
            )
        )
        if one.skip_seq == message.seq:
            script = failure.skipped(self, one, message.seq)
            self.context.steps.start(("stop", one.partition), script, self.context.now)
        self._note_ended(one)

    def _stop(self, one: Ownership, message: Message, error: str) -> None:
        one.lanes.hold(message)
        one.stopped_by = message
        one.stopped_error = error
        one.is_stopped = True
        self._write_stop(one, message.seq)
        self.context.tell(PartitionStopped(partition=one.partition, seq=message.seq, error=error))

    def _write_stop(self, one: Ownership, seq: int) -> None:
        script = failure.stop(self, one, seq, one.stopped_error)
        self.context.steps.start(("stop", one.partition), script, self.context.now)

    # ---- parked keys ----

    def on_parked(self, partition: int) -> None:
        """Hear what is parked, and what is to be replayed."""
        one = self.owned.get(partition)
        record = self.context.book.parked.get(partition)
        if one is not None and record is not None and one.knows_parked:
            self.take_parked(one, record)

    def take_parked(self, one: Ownership, record: ParkedRecord) -> None:
        """Take what is parked from the record, as long as this owner is its last writer."""
        if record.epoch != one.epoch:
            return
        one.parked = dict(record.keys)
        for token in record.replay:
            one.replaying.setdefault(token, None)
        self._replay(one)

    def _replay(self, one: Ownership) -> None:
        if one.state is OwnershipState.SERVING:
            for token in list(one.replaying):
                if ("replay", one.partition, token) not in self.context.steps:
                    self._start_replay(one, token)

    def _start_replay(self, one: Ownership, token: str) -> None:
        key = ("replay", one.partition, token)
        self.context.steps.start(key, parking.replay(self, one, token), self.context.now)

    def _stop_replays(self, one: Ownership) -> None:
        for token in one.replaying:
            self.context.steps.cancel(("replay", one.partition, token))

    def may_call(self, one: Ownership) -> bool:
        """Whether a letter may be handed to the handler now."""
        has_room = self._num_running < self.context.settings.limits.max_lanes
        return has_room and one.is_serving and not self.context.is_fenced

    def begin_replayed(self, one: Ownership, message: Message) -> int:
        """Note the handler call of a letter; returns the id of its command."""
        id_ = self.context.steps.take_id()
        one.replayed[message.seq] = (message, id_)
        self._num_running += 1
        return id_

    def _end_replayed(self, one: Ownership, event: Handled) -> None:
        message, id_ = one.replayed.get(event.message.seq, (None, 0))
        if message is not event.message:
            return
        del one.replayed[message.seq]
        reply: Done | Failed = Done(id=id_)
        if event.error is not None or not event.is_called:
            reply = Failed(id=id_, reason=Failure.REFUSED)
            if event.is_called and event.seen_epoch is None:
                message.attempt += 1
        if event.seen_epoch is not None and one.state is OwnershipState.SERVING:
            one.is_held = True
            self._start(one, raise_epoch(self, one, event.seen_epoch))
        self.context.steps.receive(reply, self.context.now)
        self._note_ended(one)

    def replay_ended(self, one: Ownership, token: str) -> None:
        """Let the key go on."""
        lane = one.replaying.pop(token, None)
        if lane is not None:
            one.lanes.let_go(lane)
            self._note_ready(one)

    # ---- time ----

    def tick(self) -> None:
        """Fence, confirm, wake lanes, save, audit."""
        self._fence()
        now = self.context.now
        for one in [one for one in self._asleep if self._wake_at(one) <= now]:
            one.lanes.wake(now)
            if one.batch_since is not None and self._batch_due_at(one) <= now:
                one.batch_since, one.is_batch_due = None, True
            self._note_ready(one)
            if self._wake_at(one) == NEVER:
                self._asleep.discard(one)
        if not self._is_fenced:
            self._progress()
            self._audit()
            self.saving.tick()

    def _wake_at(self, one: Ownership) -> float:
        at = one.lanes.next_wake_s
        return min(NEVER if at is None else at, self._batch_due_at(one))

    def _batch_due_at(self, one: Ownership) -> float:
        if one.batch_since is None:
            return NEVER
        return one.batch_since + self.context.settings.limits.batch_wait_s

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        deadline = min(map(self._wake_at, self._asleep), default=NEVER)
        if self._is_fenced:
            return deadline
        timeout_s = self.context.settings.timing.heartbeat_timeout_s
        return min(
            deadline,
            self._audit_at,
            self.context.confirmed_at + timeout_s + 1e-6,
            self._progress_at,
            self.saving.next_deadline,
        )

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
            yield from self._serve(one, is_again=True)
            return
        one.is_held = False
        self._acks.extend(one.held_acks)
        one.held_acks.clear()
        self._send_acks()
        self._note_ready(one)

    def _progress(self) -> None:
        now = self.context.now
        if now < self._progress_at:
            return
        self._progress_at = NEVER
        for one in self.owned.values():
            if one.pull is None:
                continue
            if now >= one.progress_at:
                one.progress_at = now + self.context.settings.timing.ack_wait_s / 2
                self.context.out.extend(
                    Ack(message=message, is_progress=True) for message in one.lanes.all()
                )
            self._progress_at = min(self._progress_at, one.progress_at)

    def _audit(self) -> None:
        now = self.context.now
        if not self.owned or not self.context.has_stream:
            self._audit_at = NEVER
            return
        if self._audit_at == NEVER:
            self._audit_at = now + self.context.settings.timing.audit_interval_s
        if now < self._audit_at:
            return
        self._audit_at = now + self.context.settings.timing.audit_interval_s
        for one in self.owned.values():
            if one.state is OwnershipState.SERVING and not one.is_held and one.pull is not None:
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
            self.serve_again(one)

    # ---- what is saved ----

    def save(self) -> Part:
        """Write ``done.<member>``; False: not written, to be tried again."""
        return (yield from self.saving.save())

    def load(self) -> Part:
        """Read what this member's name saved before: a new process must not lose it."""
        return (yield from self.saving.load())
