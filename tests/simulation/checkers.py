"""What must hold after every event of a simulated group, seen from outside.

The checkers know what was published, which handler calls began and ended, what the sink took, what
the server acked and what was written into the bucket. They believe nothing a member says.

========================= =========================================================================
one owner                 handler calls of one partition under one epoch come from one process
lanes                     in one process and epoch, a key's messages begin in order, one at a time
floor                     no saved floor, and no saved done-set, covers a message not handled
acks                      nothing is acked that was not handled
done-set                  a message is not handled again that the saved progress, as it was served
                          to whoever changed the owner, says is done
fence                     no handler call begins and no ack goes out more than a heartbeat timeout
                          after the newest heartbeat that came back was sent, by its own clock
effects                   per key: each message's effect once, in order, none of a lower epoch after
                          one of a higher
ownership                 no partition is unowned for longer than a bound, counted from the last
                          disturbance
consumers                 at the end, none is left whose epoch is not current
========================= =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millstream_coordinator import naming
from millstream_coordinator.machine.handoff import saved_position
from millstream_coordinator.memory import MemoryClient, Observer
from millstream_coordinator.model import (
    DonePosition,
    DoneRecord,
    Message,
    PartitionRecord,
    decode,
)
from millstream_coordinator.sinks.sinks import Mark, Verdict, judge

if TYPE_CHECKING:
    from .member import SimulatedMember

Running = dict[tuple[str, int, int, bytes], int]


class Violation(AssertionError):
    """A promise was broken; the text says which, where and when."""


@dataclass(slots=True)
class Sink:
    """The fenced model sink, which is its own witness of what it was given."""

    checks_epoch: bool = True
    marks: dict[tuple[int, bytes | int], Mark] = field(default_factory=dict)
    effects: dict[tuple[int, bytes | int], list[Mark]] = field(default_factory=dict)
    num_stale: int = 0
    num_repeated: int = 0

    def apply(self, message: Message) -> tuple[Verdict, int]:
        """Apply the effect or refuse it; also the epoch of the mark."""
        entry = (message.partition, message.seq if message.key is None else message.key)
        mark = self.marks.get(entry)
        epoch = message.epoch
        if mark is not None and (message.key is None or not self.checks_epoch):
            epoch = max(epoch, mark.epoch)
        verdict = judge(mark, epoch, message.seq)
        if verdict is Verdict.APPLY:
            self.marks[entry] = Mark(epoch, message.seq)
            self.effects.setdefault(entry, []).append(Mark(message.epoch, message.seq))
        elif verdict is Verdict.STALE:
            self.num_stale += 1
        else:
            self.num_repeated += 1
        return verdict, 0 if mark is None else mark.epoch


class Checkers(Observer):
    """Watches one run."""

    def __init__(self, sink: Sink, bound_s: float, timeout_s: float) -> None:
        self.sink = sink
        self.now = 0.0
        self.published: dict[int, list[int]] = {}
        """Partition → sequences in order."""
        self.by_entry: dict[tuple[int, bytes | int], list[int]] = {}
        self.handled: set[int] = set()
        self.num_handled = 0
        self._bound_s = bound_s
        self._timeout_s = timeout_s
        self._owners: dict[tuple[int, int], str] = {}
        self._running: Running = {}
        self._begun: Running = {}
        self._epochs: dict[int, int] = {}
        self._served: dict[tuple[str, str], list[tuple[float, bytes | None]]] = {}
        """(who read, which key) → when, and what it was given: progress only."""
        self._written_at: dict[int, float] = {}
        self._expected: dict[int, DonePosition] = {}
        """Partition → progress that must be respected under the current epoch."""
        self._owner_names: dict[int, str] = {}
        self._unowned_since: dict[int, float] = {}

    def fail(self, text: str) -> None:
        raise Violation(f"at {self.now:.3f} s: {text}")

    # ---- handler calls and acks ----

    def begins(self, member: SimulatedMember, message: Message) -> None:
        who = member.settings.instance
        where = (message.partition, message.epoch)
        owner = self._owners.setdefault(where, who)
        if owner != who:
            self.fail(f"partition {where[0]} epoch {where[1]} served by {owner} and by {who}")
        self._check_confirmed(member, f"handler call of {message.seq}")
        self._check_done(message)
        if message.key is None:
            return
        lane = (who, *where, message.key)
        if lane in self._running:
            self.fail(f"key {message.key!r} has two handler calls at one time in {who}")
        if message.seq < self._begun.get(lane, 0):
            self.fail(f"key {message.key!r}: {message.seq} began after {self._begun[lane]}")
        self._begun[lane] = message.seq
        self._running[lane] = message.seq

    def ends(self, member: SimulatedMember, message: Message, *, is_handled: bool) -> None:
        if message.key is not None:
            lane = (member.settings.instance, message.partition, message.epoch, message.key)
            self._running.pop(lane, None)
        if is_handled:
            self.num_handled += 1
            self.handled.add(message.seq)
            self._check_effects(message)

    def acks(self, member: SimulatedMember, message: Message) -> None:
        self._check_confirmed(member, f"ack of {message.seq}")

    def acked(self, seq: int) -> None:
        if seq not in self.handled:
            self.fail(f"message {seq} is acked and was not handled")

    def _check_confirmed(self, member: SimulatedMember, what: str) -> None:
        silence_s = member.now - member.confirmed_at
        if silence_s > self._timeout_s + 1e-4:
            self.fail(f"{what} by {member.settings.instance}, unconfirmed for {silence_s:.3f} s")

    def _check_done(self, message: Message) -> None:
        expected = self._expected.get(message.partition)
        if expected is None or message.epoch <= expected.epoch:
            return
        if _covers(expected, message.seq):
            self.fail(
                f"message {message.seq} of partition {message.partition} is handled again under"
                f" epoch {message.epoch}: {expected} was saved"
            )

    def _check_effects(self, message: Message) -> None:
        entry = (message.partition, message.seq if message.key is None else message.key)
        effects = self.sink.effects.get(entry, [])
        wanted = self.by_entry[entry]
        if [one.seq for one in effects] != wanted[: len(effects)]:
            self.fail(f"effects of {entry} are {effects}, published {wanted}")
        epochs = [one.epoch for one in effects]
        if epochs != sorted(epochs):
            self.fail(f"a stale effect was applied to {entry}: {effects}")

    # ---- the bucket ----

    def read(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        if key.startswith(naming.DONE_PREFIX):
            served = self._served.setdefault((client.settings.instance, key), [])
            served.append((self.now, value))

    def wrote(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        if value is None:
            return
        if key.startswith(naming.PARTITION_PREFIX):
            partition = int(key.removeprefix(naming.PARTITION_PREFIX))
            record = decode(PartitionRecord, value)
            self._check_floor(partition, record.floor, f"{key} by {client.settings.instance}")
            self._check_epoch(partition, record.epoch)
            if record.epoch > self._epochs.get(partition, 0):
                self._change_owner(client, partition, record)
                self._epochs[partition] = record.epoch
            self._written_at[partition] = self.now
        elif key.startswith(naming.DONE_PREFIX):
            for partition, position in decode(DoneRecord, value).partitions.items():
                self._check_floor(partition, position.floor, f"{key} of {partition}")
                for seq in self.published.get(partition, ()):
                    is_in = any(first <= seq <= last for first, last in position.done)
                    if is_in and seq not in self.handled:
                        self.fail(f"done-set {position.done} of {partition} holds unhandled {seq}")

    def _check_floor(self, partition: int, floor: int, where: str) -> None:
        for seq in self.published.get(partition, ()):
            if seq > floor:
                return
            if seq not in self.handled:
                self.fail(f"floor {floor} in {where} passes {seq}, which is not handled")

    def _check_epoch(self, partition: int, epoch: int) -> None:
        if epoch < self._epochs.get(partition, 0):
            self.fail(f"epoch of partition {partition} falls from {self._epochs[partition]}")

    def _change_owner(self, client: MemoryClient, partition: int, record: PartitionRecord) -> None:
        """Work out, from what the server gave the writer, what must be respected from now on."""
        old = self._epochs.get(partition, 0)
        expected = self._expected.get(partition)
        owner = self._owner_names.get(partition, "")
        since = self._written_at.get(partition, 0.0)
        served = self._served.get((client.settings.instance, naming.done_key(owner)), [])
        for at, value in served:
            if at > since:  # the first it got for this change; later ones may be for others
                position = saved_position(value, partition)
                if position is not None and position.epoch == old and old:
                    expected = position
                break
        self._expected[partition] = DonePosition(
            epoch=old,
            floor=max(record.floor, expected.floor if expected is not None else 0),
            done=expected.done if expected is not None else (),
        )
        self._owner_names[partition] = record.owner or ""

    # ---- time ----

    def look(self, owned: set[int], partitions: int, disturbed_at: float) -> None:
        """Check that no partition is without an active owner for too long."""
        for partition in range(partitions):
            if partition in owned:
                self._unowned_since.pop(partition, None)
                continue
            since = max(self._unowned_since.setdefault(partition, self.now), disturbed_at)
            if self.now - since > self._bound_s:
                self.fail(f"partition {partition} is unowned for {self.now - since:.2f} s")

    @property
    def is_complete(self) -> bool:
        """Whether every message published has had its effect."""
        return len(self.handled) == sum(len(seqs) for seqs in self.published.values())

    def check_end(self) -> None:
        """Each effect exactly once and in order, for every key."""
        for entry, wanted in self.by_entry.items():
            got = [one.seq for one in self.sink.effects.get(entry, [])]
            if got != wanted:
                self.fail(f"effects of {entry} are {got}, published {wanted}")


def _covers(position: DonePosition, seq: int) -> bool:
    is_done = any(first <= seq <= last for first, last in position.done)
    return seq <= position.floor or is_done
