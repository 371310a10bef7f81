"""Key lanes: order per key, many keys at once, inside one partition.

Each key has a FIFO of its own, its lane. The head of a lane may be handed to the handler when
nothing of that lane is being handled; it stays the head until it is done, so a retry waits *in* its
lane and only that key waits with it. Lanes are served in the order in which they became ready, so
no key starves another. A message without a key gets a lane of its own: for those no order is
claimed.

How many messages are here is bounded by the consumer's ``max_ack_pending`` (they are delivered and
not acked), how many are handled at once by the caller, who asks `start` only while it has room.
"""

import heapq
from collections import deque

from ..model import Message

LaneKey = bytes | int
"""A key, or the sequence of a message that has none."""


class Lanes:
    """The lanes of one partition under one owner."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, deque[Message]] = {}
        self._ready: deque[LaneKey] = deque()
        self._asleep: list[tuple[float, int, LaneKey]] = []
        self._running: dict[int, Message] = {}
        self._by_seq: dict[int, Message] = {}

    def __len__(self) -> int:
        """How many messages are here, running ones included."""
        return len(self._by_seq)

    @property
    def num_running(self) -> int:
        """Messages whose handler call has not ended."""
        return len(self._running)

    @property
    def has_ready(self) -> bool:
        """Whether `start` would give a message."""
        return bool(self._ready)

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
        key = _lane_key(message)
        lane = self._lanes.get(key)
        self._by_seq[message.seq] = message
        if lane is None:
            self._lanes[key] = deque((message,))
            self._ready.append(key)
        else:
            lane.append(message)

    def start(self) -> Message | None:
        """Take the head of the lane that is ready the longest; it is running from now on."""
        if not self._ready:
            return None
        message = self._lanes[self._ready.popleft()][0]
        self._running[message.seq] = message
        return message

    def finish(self, message: Message) -> None:
        """Take a running message out: it is handled. Its lane goes on."""
        del self._running[message.seq]
        del self._by_seq[message.seq]
        key = _lane_key(message)
        lane = self._lanes[key]
        lane.popleft()
        if lane:
            self._ready.append(key)
        else:
            del self._lanes[key]

    def retry(self, message: Message, at: float) -> None:
        """Put a running message to sleep at the head of its lane until ``at``."""
        del self._running[message.seq]
        heapq.heappush(self._asleep, (at, message.seq, _lane_key(message)))

    def wake(self, now: float) -> None:
        """Make lanes ready whose time has come."""
        while self._asleep and self._asleep[0][0] <= now:
            self._ready.append(heapq.heappop(self._asleep)[2])

    def drop_waiting(self) -> None:
        """Forget everything that is not running: somebody else will handle it."""
        self._by_seq = dict(self._running)
        self._lanes = {_lane_key(one): deque((one,)) for one in self._running.values()}
        self._ready.clear()
        self._asleep.clear()


def _lane_key(message: Message) -> LaneKey:
    return message.seq if message.key is None else message.key
