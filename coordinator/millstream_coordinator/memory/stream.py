"""A stream and its pull consumers as plain data: the data plane of a `MemoryServer`.

Deliveries are pushed at once: a consumer with a pull gets what it may have as soon as it may have
it. Books are kept as nats-server 2.15.1 keeps them, because a group's floor rests on them:

* the **ack floor** moves with acks only. With nothing left pending it is the last sequence that was
  looked at, else the one before the lowest pending, and that only when the ack was the one the
  floor waited for;
* a **redelivery** gets a new consumer sequence and leaves the floor alone; so does ``+WPI``;
* what a **purge** takes away while it is pending counts as acked;
* on a **work-queue** stream an ack removes the message, two consumers may not share a subject, and
  a new consumer starts at what is left.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..model import Message, Retention
from ..partitioning.key import KeyRule
from ..partitioning.pattern import overlap
from ..ports import Delivered, Happening, PullEnded, PullIdle

Push = Callable[[Happening], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    timestamp_ns: int


@dataclass(slots=True)
class StandingPull:
    """Who waits for a consumer's messages; ``owner`` tells whose it is."""

    owner: object
    number: int
    epoch: int
    push: Push


@dataclass(slots=True)
class MemoryConsumer:
    """A pull consumer: explicit ack, one filter."""

    name: str
    partition: int
    level: int
    """Of how many partitions; 0: as many as the group began with."""
    rule: KeyRule
    start_seq: int
    """Where it was asked to start; 0 on a work-queue stream."""
    max_ack_pending: int
    ack_wait_s: float
    next_seq: int
    """The first stream sequence that was not looked at yet."""
    ack_floor: int
    """Everything it delivers up to this stream sequence is acked."""
    delivered: int = 0
    """Consumer sequence of the last delivery."""
    ack_floor_delivered: int = 0
    pending: dict[int, int] = field(default_factory=dict)
    """Delivered and not acked: stream sequence → consumer sequence of its first delivery."""
    sent_at: dict[int, float] = field(default_factory=dict)
    """When each of them was delivered last, or was said to be worked on."""
    num_delivered: dict[int, int] = field(default_factory=dict)
    """How often, for those delivered more than once."""
    pull: StandingPull | None = None

    def settle(self, seq: int) -> bool:
        """Take a sequence off the pending ones; False if it is none of them."""
        consumer_seq = self.pending.pop(seq, None)
        if consumer_seq is None:
            return False
        self.sent_at.pop(seq, None)
        self.num_delivered.pop(seq, None)
        if not self.pending:
            self.ack_floor, self.ack_floor_delivered = self.next_seq - 1, self.delivered
        elif consumer_seq == self.ack_floor_delivered + 1:
            lowest = min(self.pending)
            self.ack_floor = max(self.ack_floor, lowest - 1)
            self.ack_floor_delivered = self.pending[lowest] - 1
        return True

    def end_pull(self, reason: str) -> None:
        """Tell who waits that nothing more will come."""
        pull, self.pull = self.pull, None
        if pull is not None:
            pull.push(PullEnded(pull=pull.number, reason=reason))


class MemoryStream:
    """Messages in order, from sequence 1 on."""

    def __init__(self, retention: Retention = Retention.LIMITS) -> None:
        self.retention = retention
        self.messages: list[Stored | None] = []
        """Sequence 1 first; None: not there any more."""
        self.consumers: dict[str, MemoryConsumer] = {}
        self._partitions: dict[tuple[str, int, str], int | None] = {}

    @property
    def last_seq(self) -> int:
        """Sequence of the newest message."""
        return len(self.messages)

    def add(
        self, subject: str, data: bytes, headers: Mapping[str, str], now: float, wall_ns: int
    ) -> int:
        """Store a message and deliver it where it is waited for; returns its sequence."""
        seq = len(self.messages) + 1
        self.messages.append(Stored(seq, subject, data, headers, wall_ns))
        for consumer in self.consumers.values():
            self.deliver(consumer, now)
        return seq

    def purge(self, below: int, now: float) -> list[int]:
        """Drop every message below a sequence; returns those that were there."""
        gone = [one.seq for one in self.messages[: below - 1] if one is not None]
        for seq in gone:
            self.messages[seq - 1] = None
        for consumer in self.consumers.values():
            for seq in gone:
                consumer.settle(seq)
            consumer.next_seq = max(consumer.next_seq, below)
            consumer.ack_floor = max(consumer.ack_floor, below - 1)
            self.deliver(consumer, now)
        return gone

    # ---- consumers ----

    def overlaps(self, rule: KeyRule, partition: int, level: int = 0) -> bool:
        """Whether a work-queue stream would refuse another consumer for the partition."""
        if self.retention is not Retention.WORK_QUEUE:
            return False
        wanted = rule.subject_filter(partition, level)
        return any(
            overlap(wanted, one.rule.subject_filter(one.partition, one.level))
            for one in self.consumers.values()
        )

    def add_consumer(
        self,
        name: str,
        partition: int,
        rule: KeyRule,
        *,
        level: int = 0,
        start_seq: int,
        max_ack_pending: int,
        ack_wait_s: float,
    ) -> MemoryConsumer:
        """Make a consumer; on a work-queue stream it starts at what is left."""
        asked_seq = start_seq
        if self.retention is Retention.WORK_QUEUE:
            asked_seq = 0
            left = (one.seq for one in self.messages if one is not None)
            start_seq = next(left, self.last_seq + 1)
        consumer = MemoryConsumer(
            name=name,
            partition=partition,
            level=level,
            rule=rule,
            start_seq=asked_seq,
            max_ack_pending=max_ack_pending,
            ack_wait_s=ack_wait_s,
            next_seq=max(1, start_seq),
            ack_floor=max(0, start_seq - 1),
        )
        self.consumers[name] = consumer
        return consumer

    def remove_consumer(self, name: str, reason: str) -> None:
        """Delete a consumer, if it is there; who pulls is told."""
        consumer = self.consumers.pop(name, None)
        if consumer is not None:
            consumer.end_pull(reason)

    def deliver(self, consumer: MemoryConsumer, now: float) -> None:
        """Deliver what the consumer's pull may have."""
        messages = self.messages
        last_seq = len(messages)
        while (
            consumer.pull is not None
            and consumer.next_seq <= last_seq
            and len(consumer.pending) < consumer.max_ack_pending
        ):
            stored = messages[consumer.next_seq - 1]
            consumer.next_seq += 1
            if stored is not None and self._reads(consumer, stored.subject):
                self._push(consumer, stored, now)

    def redeliver(self, consumer: MemoryConsumer, now: float, *, is_forced: bool) -> None:
        """Deliver again what is pending for longer than ``ack_wait``, or all of it."""
        for seq in sorted(consumer.pending):
            is_due = is_forced or now - consumer.sent_at[seq] >= consumer.ack_wait_s
            stored = self.messages[seq - 1]
            if is_due and consumer.pull is not None and stored is not None:
                consumer.num_delivered[seq] = consumer.num_delivered.get(seq, 1) + 1
                self._push(consumer, stored, now)

    def ack(self, consumer: MemoryConsumer, seq: int, now: float) -> bool:
        """Take an ack; True if the message was pending."""
        if not consumer.settle(seq):
            return False
        if self.retention is Retention.WORK_QUEUE:
            self.messages[seq - 1] = None
        self.deliver(consumer, now)
        return True

    def progress(self, consumer: MemoryConsumer, seq: int, now: float) -> None:
        """Start a pending message's ``ack_wait`` anew."""
        if seq in consumer.pending:
            consumer.sent_at[seq] = now

    def tick(self, now: float) -> None:
        """Redeliver what is due, and send the idle heartbeats of standing pulls."""
        for consumer in self.consumers.values():
            pull = consumer.pull
            if pull is None:
                continue
            if consumer.pending:
                self.redeliver(consumer, now, is_forced=False)
            pull.push(PullIdle(pull=pull.number, consumer_seq=consumer.delivered))

    def _place(self, rule: KeyRule, level: int, subject: str) -> int | None:
        key = (rule.text, level, subject)
        try:
            return self._partitions[key]
        except KeyError:
            found = self._partitions[key] = rule.partition_of(subject, level)
            return found

    def _reads(self, consumer: MemoryConsumer, subject: str) -> bool:
        if consumer.rule.partition_place is None:
            return True
        return self._place(consumer.rule, consumer.level, subject) == consumer.partition

    def _push(self, consumer: MemoryConsumer, stored: Stored, now: float) -> None:
        pull = consumer.pull
        assert pull is not None
        consumer.delivered += 1
        consumer.pending.setdefault(stored.seq, consumer.delivered)
        consumer.sent_at[stored.seq] = now
        mark = self._place(consumer.rule, 0, stored.subject)
        finest = self._place(consumer.rule, max(consumer.rule.finer, default=0), stored.subject)
        message = Message(
            subject=stored.subject,
            data=stored.data,
            headers=stored.headers,
            key=consumer.rule.key_of(stored.subject, stored.headers, stored.data),
            partition=consumer.partition,
            seq=stored.seq,
            epoch=pull.epoch,
            num_delivered=consumer.num_delivered.get(stored.seq, 1),
            timestamp_ns=stored.timestamp_ns,
            reply=f"{consumer.name} {stored.seq}",
            consumer_seq=consumer.delivered,
            mark=consumer.partition if mark is None else mark,
            finest=consumer.partition if finest is None else finest,
        )
        pull.push(Delivered(pull.number, (message,)))
