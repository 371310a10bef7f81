"""What a consumer has delivered and what is still owed, as a pure machine.

Every delivery gets the next *consumer sequence*; a message keeps its *stream sequence*. A
delivered message is *pending* until it is acked, terminated, gone from the stream, or out of
deliveries. The *ack floor* is the pair below which nothing is owed.

Rules kept from nats-server 2.15.1, since clients see them in CONSUMER.INFO:
- A pending message keeps the consumer sequence of its first delivery; redeliveries use up new
  ones.
- The floor moves when the message right above it is acked: up to the next pending one, or to
  the last delivery when nothing is pending. A message that ran out of deliveries does not move
  it.
- ``num_redelivered`` counts messages delivered more than once and not acked since, also those
  that ran out of deliveries.

New messages are delivered in ascending stream sequence, so ``pending`` (insertion order) is
ascending.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from .model import AckPolicy


@dataclass(slots=True)
class Pending:
    """A delivery somebody owes an ack for."""

    consumer_seq: int
    sent_ns: int
    deadline_s: float


class AckState:
    """Deliveries and acks of one consumer. Knows no clock, no messages, no wire."""

    def __init__(self, policy: AckPolicy, start_seq: int) -> None:
        self.policy = policy
        self.delivered_consumer = 0
        self.delivered_stream = start_seq - 1
        self.floor_consumer = 0
        self.floor_stream = start_seq - 1
        self.pending: OrderedDict[int, Pending] = OrderedDict()
        self.deliveries: dict[int, int] = {}
        self._queue: deque[int] = deque()
        self._queued: set[int] = set()
        self._deadlines: list[float] = []
        self._waits: dict[float, list[int]] = {}

    def delivery_count(self, seq: int) -> int:
        """Say how often a pending message was delivered."""
        return self.deliveries.get(seq, 1)

    def deliver(self, seq: int, count: int, sent_ns: int, deadline_s: float) -> int:
        """Record a delivery, the ``count``-th of this message; its consumer sequence."""
        self.delivered_consumer += 1
        consumer_seq = self.delivered_consumer
        self.delivered_stream = max(self.delivered_stream, seq)
        if self.policy is AckPolicy.NONE:
            self.floor_consumer, self.floor_stream = consumer_seq, self.delivered_stream
            return consumer_seq
        entry = self.pending.get(seq)
        if entry is None:
            self.pending[seq] = Pending(consumer_seq, sent_ns, deadline_s)
        else:
            entry.sent_ns, entry.deadline_s = sent_ns, deadline_s
        if count > 1:
            self.deliveries[seq] = count
            self._unqueue(seq)
        self._wait(seq, deadline_s)
        return consumer_seq

    def deliver_new(self, seqs: Sequence[int], sent_ns: int, deadline_s: float) -> None:
        """Record the first deliveries of messages, ascending; each as `deliver` does."""
        first = self.delivered_consumer + 1
        self.delivered_consumer += len(seqs)
        self.delivered_stream = max(self.delivered_stream, seqs[-1])
        if self.policy is AckPolicy.NONE:
            self.floor_consumer, self.floor_stream = self.delivered_consumer, self.delivered_stream
            return
        for consumer_seq, seq in enumerate(seqs, first):
            self.pending[seq] = Pending(consumer_seq, sent_ns, deadline_s)
            self._wait(seq, deadline_s)

    def ack(self, seq: int, consumer_seq: int) -> list[int]:
        """Record an ack as the policy reads it; the stream sequences it settles."""
        if self.policy is AckPolicy.ALL:
            return self._ack_all(seq, consumer_seq)
        if self.policy is AckPolicy.NONE:
            return []
        return [seq] if self.settle(seq) else []

    def settle(self, seq: int) -> bool:
        """One message is owed no more; whether it was pending or had run out of deliveries."""
        was_redelivered = self.deliveries.pop(seq, None) is not None
        if self._queued:
            self._unqueue(seq)
        entry = self.pending.pop(seq, None)
        if entry is None:
            return was_redelivered
        if not self.pending:
            self.floor_consumer = self.delivered_consumer
            self.floor_stream = self.delivered_stream
        elif entry.consumer_seq == self.floor_consumer + 1:
            next_seq = next(iter(self.pending))
            if next_seq > seq:
                self.floor_consumer = self.pending[next_seq].consumer_seq - 1
                self.floor_stream = next_seq - 1
            else:
                self.floor_consumer, self.floor_stream = entry.consumer_seq, seq
        return True

    def _ack_all(self, seq: int, consumer_seq: int) -> list[int]:
        if consumer_seq <= self.floor_consumer or seq <= self.floor_stream:
            return []
        if seq > self.delivered_stream:
            return []
        acked = []
        while self.pending:
            first = next(iter(self.pending))
            if first > seq:
                break
            del self.pending[first]
            acked.append(first)
        for gone in [key for key in self.deliveries if key <= seq]:
            del self.deliveries[gone]
        for gone in acked:
            self._unqueue(gone)
        self.floor_consumer = min(consumer_seq, self.delivered_consumer)
        self.floor_stream = seq
        return acked

    def exhaust(self, seq: int) -> None:
        """A message had its last delivery: no longer pending, and the floor stays."""
        self.deliveries[seq] = self.deliveries.get(seq, 1)
        self.pending.pop(seq, None)
        self._unqueue(seq)

    def nak(self, seq: int, deadline_s: float | None) -> bool:
        """Have a pending message delivered again, now or at ``deadline_s``; False: not pending."""
        entry = self.pending.get(seq)
        if entry is None:
            return False
        if deadline_s is not None:
            self._unqueue(seq)
            entry.deadline_s = deadline_s
            self._wait(seq, deadline_s)
        else:
            self._enqueue(seq)
        return True

    def postpone(self, seq: int, deadline_s: float) -> bool:
        """Give a pending message more time (``+WPI``); False when it is not pending."""
        entry = self.pending.get(seq)
        if entry is None or seq in self._queued:
            return False
        entry.deadline_s = deadline_s
        self._wait(seq, deadline_s)
        return True

    def _wait(self, seq: int, deadline_s: float) -> None:
        """Have ``expire`` look at a message then; what went out together waits together."""
        waiting = self._waits.get(deadline_s)
        if waiting is None:
            self._waits[deadline_s] = [seq]
            heapq.heappush(self._deadlines, deadline_s)
        else:
            waiting.append(seq)

    def _is_waiting(self, seq: int, deadline_s: float) -> bool:
        """Whether this deadline still counts: not acked, queued or put off since."""
        entry = self.pending.get(seq)
        return entry is not None and entry.deadline_s == deadline_s and seq not in self._queued

    def expire(self, now_s: float) -> int:
        """Queue what was not acked in time, in ascending stream sequence; how many."""
        late: set[int] = set()
        while self._deadlines and self._deadlines[0] <= now_s:
            deadline_s = heapq.heappop(self._deadlines)
            waiting = self._waits.pop(deadline_s)
            late.update(seq for seq in waiting if self._is_waiting(seq, deadline_s))
        for seq in sorted(late):
            self._enqueue(seq)
        return len(late)

    def next_deadline(self) -> float | None:
        """Give the time of the next ``expire`` that may find something."""
        while self._deadlines:
            deadline_s = self._deadlines[0]
            waiting = self._waits[deadline_s]
            while waiting:
                if self._is_waiting(waiting[-1], deadline_s):
                    return deadline_s
                waiting.pop()
            del self._waits[heapq.heappop(self._deadlines)]
        return None

    def restart_waits(self, deadline_of: dict[int, float]) -> None:
        """Set all deadlines anew (after a restart, or a change of the ack wait)."""
        self._deadlines, self._waits = [], {}
        for seq, entry in self.pending.items():
            entry.deadline_s = deadline_of[seq]
            self._wait(seq, entry.deadline_s)

    @property
    def queue_length(self) -> int:
        """How many messages wait for redelivery."""
        return len(self._queued)

    def next_queued(self) -> int | None:
        """Give the next message to deliver again."""
        while self._queue:
            seq = self._queue[0]
            if seq in self._queued:
                return seq
            self._queue.popleft()
        return None

    def _enqueue(self, seq: int) -> None:
        if seq not in self._queued:
            self._queued.add(seq)
            self._queue.append(seq)

    def _unqueue(self, seq: int) -> None:
        if seq in self._queued:
            self._queued.discard(seq)
            if self._queue and self._queue[0] == seq:
                self._queue.popleft()
            else:
                self._queue.remove(seq)
