"""Key lanes: order per key, many keys at once, inside one partition.

Each key has a FIFO of its own, its lane. The head of a lane may be handed to the handler when
nothing of that lane is being handled; it stays the head until it is done, so a retry waits *in* its
lane and only that key waits with it. Lanes are served in the order in which they became ready, so
no key starves another. A message without a key gets a lane of its own: for those no order is
claimed.

A **batch** takes lanes from their heads on, each lane's messages in order, so what one call of a
batch handler gets is in order per key, and no other call has anything of those keys. After a call
that failed its messages are tried again one by one (``attempt`` above 1), so that one bad message
does not take its neighbours with it.

A lane can be **held**: nothing of it is started until it is let go (its key is being replayed, or
waits for an operator).

How many messages are here is bounded by the consumer's ``max_ack_pending`` (they are delivered and
not acked) and by the pull's window of bytes; how many are handled at once by the caller, who asks
`start` only while it has room. A lane is a list and not a deque: a hundred thousand keys with one
message each are the common large case, and an empty deque takes 600 bytes.
"""

import heapq
from collections import deque
from collections.abc import Iterable

from ..model import Message

LaneKey = bytes | int
"""A key, or the sequence of a message that has none."""


class Lanes:
    """The lanes of one partition under one owner."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, list[Message]] = {}
        self._ready: deque[LaneKey] = deque()
        self._asleep: list[tuple[float, int, LaneKey]] = []
        self._running: dict[int, Message] = {}
        self._by_seq: dict[int, Message] = {}
        self._held: set[LaneKey] = set()

    def __len__(self) -> int:
        """How many messages are here, running ones included."""
        return len(self._by_seq)

    @property
    def num_lanes(self) -> int:
        """Keys with messages; each message without a key counts as one."""
        return len(self._lanes)

    @property
    def deepest(self) -> int:
        """Messages in the longest lane."""
        return max(map(len, self._lanes.values()), default=0)

    @property
    def oldest(self) -> Message | None:
        """The message that is here the longest."""
        return next(iter(self._by_seq.values()), None)

    @property
    def num_running(self) -> int:
        """Messages whose handler call has not ended."""
        return len(self._running)

    @property
    def has_ready(self) -> bool:
        """Whether `start` would give a message."""
        return bool(self._ready)

    @property
    def num_ready(self) -> int:
        """How many lanes have a head that may be started."""
        return len(self._ready)

    @property
    def next_wake_s(self) -> float | None:
        """When the first sleeping lane wakes; None if none sleeps."""
        return self._asleep[0][0] if self._asleep else None

    def find(self, seq: int) -> Message | None:
        """Return the message with this stream sequence, if it is here."""
        return self._by_seq.get(seq)

    def all(self) -> list[Message]:
        """Return everything that is here, oldest delivery first."""
        return list(self._by_seq.values())

    def add(self, message: Message) -> None:
        """Append to the message's lane."""
        key = lane_key(message)
        lane = self._lanes.get(key)
        self._by_seq[message.seq] = message
        if lane is None:
            self._lanes[key] = [message]
            if key not in self._held:
                self._ready.append(key)
        else:
            lane.append(message)

    def peek(self) -> Message | None:
        """Return what `start` would take."""
        return self._lanes[self._ready[0]][0] if self._ready else None

    def start(self) -> Message | None:
        """Take the head of the lane that is ready the longest; it is running from now on."""
        if not self._ready:
            return None
        message = self._lanes[self._ready.popleft()][0]
        self._running[message.seq] = message
        return message

    def start_batch(self, max_messages: int) -> list[Message]:
        """Take up to so many, whole lanes as far as they fit; they are running from now on."""
        batch: list[Message] = []
        while self._ready and len(batch) < max_messages:
            lane = self._lanes[self._ready[0]]
            if lane[0].attempt > 1:
                if not batch:
                    batch.append(lane[0])
                    self._ready.popleft()
                break
            self._ready.popleft()
            batch.extend(lane[: max_messages - len(batch)])
        self._running.update((message.seq, message) for message in batch)
        return batch

    def finish(self, message: Message) -> None:
        """Take a running message out: it is handled. Its lane goes on."""
        seq = message.seq
        del self._running[seq]
        del self._by_seq[seq]
        key = seq if message.key is None else message.key
        lane = self._lanes[key]
        if len(lane) == 1:
            del self._lanes[key]
            return
        del lane[0]
        # In a batch the next of the lane runs already, and is finished after this one.
        if lane[0].seq not in self._running and key not in self._held:
            self._ready.append(key)

    def retry(self, message: Message, at: float) -> None:
        """Put a running message to sleep at the head of its lane until ``at``."""
        del self._running[message.seq]
        heapq.heappush(self._asleep, (at, message.seq, lane_key(message)))

    def retry_batch(self, messages: Iterable[Message], at: float) -> None:
        """Put what one failed call had to sleep, every lane's own where it was."""
        for message in messages:
            if self._lanes[lane_key(message)][0] is message:
                self.retry(message, at)
            else:
                del self._running[message.seq]

    def put_back(self, message: Message) -> None:
        """Make a message that runs, and was not handled, the ready head of its lane again."""
        del self._running[message.seq]
        key = lane_key(message)
        if self._lanes[key][0] is message and key not in self._held:
            self._ready.appendleft(key)

    def hold(self, message: Message) -> None:
        """Start nothing of the lane whose head this is, running or ready, until it is let go."""
        self._running.pop(message.seq, None)
        key = lane_key(message)
        if key not in self._held:
            self._held.add(key)
            if key in self._ready:
                self._ready.remove(key)

    def let_go(self, key: LaneKey) -> None:
        """Let a held lane go on."""
        if key in self._held:
            self._held.discard(key)
            if key in self._lanes:
                self._ready.append(key)

    def wake(self, now: float) -> None:
        """Make lanes ready whose time has come."""
        while self._asleep and self._asleep[0][0] <= now:
            key = heapq.heappop(self._asleep)[2]
            if key not in self._held:
                self._ready.append(key)

    def drop_waiting(self) -> None:
        """Forget everything that is not running: somebody else will handle it."""
        self._by_seq = dict(self._running)
        self._lanes = {}
        for message in self._running.values():
            self._lanes.setdefault(lane_key(message), []).append(message)
        self._ready.clear()
        self._asleep.clear()
        self._held.clear()


def lane_key(message: Message) -> LaneKey:
    """Which lane a message belongs to."""
    return message.seq if message.key is None else message.key
