"""Handler calls of one member: what is handed out, what came back, and the acks.

What is ready is handed out as far as there is room for calls. There are two ways. The plain one is
`dispatch`, which gives a ``Handle`` for each call, and `on_handled`, which takes its end. The short
one is for an edge that handles many messages between two steps (``takes_calls``): `next_call` gives
what may begin now, and `handled` books a call of one message that returned and gives the next one;
ends of any other kind (an error, a batch) come to `on_handled` as well. Then `dispatch`, once per
round of the edge's loop, lets the acks go out together. The short way touches nothing else of the
machine: no command and no step per message.

A message that must not go to the handler is sent where it belongs (`Failures.detour`). An ack goes
out only while ownership is beyond doubt; else it is held back at its partition.
"""

from collections import deque
from typing import Protocol

from ..model import Message
from ..ports import Acks, Handle, Handled
from .ownership import Holder, Ownership, OwnershipState
from .saving import Saving

NEVER = float("inf")


class Detours(Protocol):
    """Where a message's way parts from the handler (`Failures`)."""

    def detour(self, one: Ownership, message: Message) -> bool:
        """Send a message that was started where it belongs, if that is not the handler."""

    def fail(self, one: Ownership, batch: tuple[Message, ...], event: Handled) -> None:
        """Take a call that failed."""

    def end_replayed(self, one: Ownership, event: Handled) -> None:
        """Take the end of a call that is none of the lanes': a letter's, if of any."""


class Handing:
    """The handler calls under way and to be made."""

    detours: Detours
    """Set by the owner."""

    def __init__(self, owner: Holder, saving: Saving) -> None:
        self.context = owner.context
        self.num_running = 0
        """Handler calls under way."""
        self._owner = owner
        self._saving = saving
        self._owned = owner.owned
        self._ready: deque[Ownership] = deque()
        self._asleep: dict[Ownership, None] = {}
        """Those with lanes, or a batch, that wait for a moment; in order: a seed must be a run."""
        self._acks: list[Message] = []
        self._drained: list[Ownership] = []

    def dispatch(self) -> None:
        """Start handler calls while there is room and no doubt; let out what was gathered."""
        self.send_acks()
        self._release_drained()
        if self.context.is_fenced or self.context.settings.takes_calls:
            return
        while (messages := self._next_messages()) is not None:
            self.context.out.append(Handle(messages=messages))

    @property
    def num_callable(self) -> int:
        """How many calls there is work and room for."""
        room = self.context.settings.limits.max_lanes - self.num_running
        if room <= 0 or self._owner.is_fenced:
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
        if self.context.is_fenced is not self._owner.is_fenced:
            self._owner.fence()
        return None if self._owner.is_fenced else self._next_messages()

    def _next_messages(self) -> tuple[Message, ...] | None:
        if self.context.settings.limits.batch_messages > 1:
            return self._next_batch()
        message = self._next()
        return None if message is None else (message,)

    def may_begin(self, message: Message) -> bool:
        """Whether a call that was handed out may still begin."""
        one = self._owned.get(message.partition)
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
        if self.context.is_fenced is not self._owner.is_fenced:
            self._owner.fence()
        self.num_running -= 1
        one = self._owned.get(message.partition)
        if one is not None and one.lanes.find(message.seq) is message:
            if one.batches:
                one.batches.pop(message.seq, None)
            self.complete(one, message)
            self.note_ended(one)
        elif one is not None:
            self.detours.end_replayed(one, Handled(message=message))
        return None if self._owner.is_fenced else self._next()

    def note_ended(self, one: Ownership) -> None:
        if one.state is OwnershipState.DRAINING or self._owner.puts_down:
            self._drained.append(one)

    def _release_drained(self) -> None:
        drained, self._drained = self._drained, []
        for one in drained:
            is_owned = self._owned.get(one.partition) is one
            if is_owned and ("own", one.partition) not in self.context.steps:
                self._owner.release_if_drained(one)

    def _next(self) -> Message | None:
        """Take the next message to handle; those that go elsewhere are sent on their way."""
        ready, limit = self._ready, self.context.settings.limits.max_lanes
        while ready and self.num_running < limit:
            one = ready[0]
            message = None
            if self._owned.get(one.partition) is one and one.is_serving:
                message = one.lanes.start()
            if message is None or not one.lanes.has_ready:
                ready.popleft()
                one.is_queued = False
            elif len(ready) > 1:
                ready.rotate(-1)
            if message is None:
                continue
            if one.has_detours and self.detours.detour(one, message):
                continue
            self.num_running += 1
            return message
        return None

    def _next_batch(self) -> tuple[Message, ...] | None:
        limits = self.context.settings.limits
        for _ in range(len(self._ready)):
            if self.num_running >= limits.max_lanes:
                return None
            one = self._ready.popleft()
            one.is_queued = False
            if self._owned.get(one.partition) is not one or not one.is_serving:
                continue
            if one.has_detours:
                message = one.lanes.start()
                self.note_ready(one)
                if message is None or self.detours.detour(one, message):
                    continue
                batch = [message]
            elif self._waits_for_more(one):
                continue
            else:
                one.batch_since, one.is_batch_due = None, False
                batch = one.lanes.start_batch(limits.batch_messages)
                self.note_ready(one)
            if batch:
                self.num_running += 1
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
            self._asleep[one] = None
        return True

    def note_ready(self, one: Ownership) -> None:
        if not one.is_queued and one.lanes.has_ready:
            one.is_queued = True
            self._ready.append(one)

    def on_handled(self, event: Handled) -> None:
        """A handler call ended."""
        # A fence between two ticks is one as well: what it holds back is let go by its end.
        self._owner.fence()
        self.num_running -= 1
        message = event.message
        one = self._owned.get(message.partition)
        if one is None:
            return
        if one.lanes.find(message.seq) is not message:
            self.detours.end_replayed(one, event)
            return
        batch = one.batches.pop(message.seq, (message,))
        if not event.is_called:
            for each in reversed(batch):
                one.lanes.put_back(each)
        elif event.error is not None:
            self.detours.fail(one, batch, event)
        else:
            for each in batch:
                self.complete(one, each)
        if one.state is OwnershipState.DRAINING:
            one.lanes.drop_waiting()
        self.note_ready(one)
        self._owner.release_if_drained(one)

    def complete(self, one: Ownership, message: Message) -> None:
        one.lanes.finish(message)
        one.floor.complete(message.seq)
        self._saving.num_unsaved += 1
        if one.is_held or self._owner.is_fenced:
            one.held_acks.append(message)
        elif self.context.has_stream:
            self._acks.append(message)
        self.note_ready(one)

    def send_acks(self) -> None:
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
                one = self._owned.get(partition)
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

    def _wake_at(self, one: Ownership) -> float:
        at = one.lanes.next_wake_s
        return min(NEVER if at is None else at, self._batch_due_at(one))

    def _batch_due_at(self, one: Ownership) -> float:
        if one.batch_since is None:
            return NEVER
        return one.batch_since + self.context.settings.limits.batch_wait_s

    def take_held_acks(self, one: Ownership) -> None:
        """Let go what was held back: ownership is confirmed again."""
        self._acks.extend(one.held_acks)
        one.held_acks.clear()
        self.send_acks()

    def take_acks(self, one: Ownership, acks: list[Message]) -> None:
        """Acknowledge deliveries of what is done already."""
        if self.context.is_fenced or one.is_held:
            one.held_acks.extend(acks)
        else:
            self._acks.extend(acks)
        self._saving.num_unsaved += len(acks)

    def sleep(self, one: Ownership) -> None:
        """Look at it again when its lanes wake."""
        self._asleep[one] = None

    def forget(self, one: Ownership) -> None:
        """It is owned no more."""
        self._asleep.pop(one, None)

    def wake(self) -> None:
        """Wake lanes and batches whose time has come."""
        now = self.context.now
        for one in [one for one in self._asleep if self._wake_at(one) <= now]:
            one.lanes.wake(now)
            if one.batch_since is not None and self._batch_due_at(one) <= now:
                one.batch_since, one.is_batch_due = None, True
            self.note_ready(one)
            if self._wake_at(one) == NEVER:
                self._asleep.pop(one, None)

    @property
    def next_wake_s(self) -> float:
        """When the first of them wakes."""
        return min(map(self._wake_at, self._asleep), default=NEVER)
