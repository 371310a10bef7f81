"""What must hold after every event of a simulated group, seen from outside.

The checkers know what was published, which handler calls began and ended, what the sink took, what
the server acked and what was written into the bucket. They believe nothing a member says.

========================= =========================================================================
one owner                 handler calls of one partition under one epoch come from one process, and
                          an epoch is given once, also when its record or the bucket was lost
lanes                     in one process and epoch, a key's messages begin in order, one at a time
pause, stop               no handler call begins in a partition of which the process has heard, and
                          the bucket still says, that it is paused or stopped
floor                     no saved floor, and no saved done-set, covers a message not handled
acks                      nothing is acked that was not handled, stored as a letter, or skipped by a
                          reset
letters                   a message has at most one
done-set                  a message is not handled again that the saved progress, as it was served
                          to whoever changed the owner, says is done
fence                     no handler call begins and no ack goes out more than a heartbeat timeout
                          after the newest heartbeat that came back was sent, by its own clock
second read               no pull is opened on a consumer that was made after its epoch was over
effects                   per key: each message's effect once, in order, none of a lower epoch after
                          one of a higher
epochs                    a partition's epoch never falls, and every change of owner raises it
epochs without a stream   at rest a partition's epoch is above each that a living member had it
                          under, also after a bucket was lost
ownership                 no partition is unowned for longer than a bound, counted from the last
                          disturbance
rest                      at rest nothing moves, and the partitions are balanced by capacity
consumers                 at the end, none is left whose epoch is not current
========================= =========================================================================

A message that the stream dropped (a purge, a limit) before it was handled need not be handled. A
bucket that was lost takes the progress it held with it: what is checked against that begins anew,
what is checked against epochs and effects does not. A place (``machine/book.py``) is no record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from millstream_coordinator import naming
from millstream_coordinator.errors import BadRecord
from millstream_coordinator.machine.handoff import saved_position
from millstream_coordinator.memory import MemoryClient, MemoryLetter, Observer
from millstream_coordinator.model import (
    ChildPosition,
    ControlRecord,
    DonePosition,
    DoneRecord,
    LetterReason,
    Message,
    PartitionRecord,
    decode,
)
from millstream_coordinator.ports import Done, Reply, StoreLetter
from millstream_coordinator.sinks import Mark, Verdict, judge

from .scheduler import Scheduler

if TYPE_CHECKING:
    from .member import SimulatedMember

Running = dict[tuple[str, int, int, bytes], int]
Entry = tuple[int, bytes | int]
"""What the sink keeps a mark of: `Message.mark` and a key, or the place of a keyless message."""
STREAM_SIZE = 1_000_000
"""A message's place is its sequence, plus so much for each stream before its own."""


class Violation(AssertionError):
    """A promise was broken; the text says which, where and when."""


@dataclass(slots=True)
class Sink:
    """The fenced model sink, which is its own witness of what it was given."""

    marks: dict[Entry, Mark] = field(default_factory=dict)
    effects: dict[Entry, list[Mark]] = field(default_factory=dict)
    num_stale: int = 0
    num_repeated: int = 0

    def apply(self, message: Message) -> tuple[Verdict, int]:
        """Apply the effect or refuse it; also the epoch of the mark."""
        entry = (message.mark, message.seq if message.key is None else message.key)
        mark = self.marks.get(entry)
        epoch = message.epoch
        if mark is not None and message.key is None:
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


@dataclass(slots=True)
class Published:
    """The messages of one partition of a level, in order, and how far they are dealt with."""

    seqs: list[int] = field(default_factory=list)
    num_settled: int = 0
    """So many from the first on are handled, dropped or among the letters."""
    num_done: int = 0
    """So many from the first on need nothing any more."""


class Checkers(Observer):
    """Watches one run."""

    def __init__(
        self,
        scheduler: Scheduler,
        bound_s: float,
        timeout_s: float,
        levels: tuple[int, ...],
        *,
        value: Callable[[str], bytes | None] = lambda _: None,
        has_consumers: Callable[[], bool] = lambda: True,
        has_streams: bool = False,
    ) -> None:
        """``value``: of a key of the bucket, as it is now. ``has_consumers``: whether there is any.

        ``has_streams``: one per partition.
        """
        self.sink = Sink()
        self.levels = levels
        self.published: dict[tuple[int, int], Published] = defaultdict(Published)
        """(level, partition) → its messages."""
        self.by_entry: dict[Entry, list[int]] = {}
        self.handled: set[int] = set()
        self.dropped: set[int] = set()
        """What the stream dropped, or a reset skipped, before it was handled."""
        self.skipped: set[int] = set()
        """… what a reset skipped. Who reads it nevertheless acks it as done: a merged partition
        begins at its children's lowest floor, and one of them was reset to a higher."""
        self.lettered: set[int] = set()
        """What was stored as a letter."""
        self.put_aside: set[int] = set()
        """… and not to be replayed."""
        self.num_published = 0
        self.num_handled = 0
        self.longest_unowned_s = 0.0
        self._scheduler = scheduler
        self._value = value
        self._has_consumers = has_consumers
        self._has_streams = has_streams
        self._level_of: dict[tuple[int, int], int] = {}
        """(partition, epoch) → at which level that is."""
        self._bound_s = bound_s
        self._timeout_s = timeout_s
        self._owners: dict[tuple[int, int], str] = {}
        self._running: Running = {}
        self._begun: Running = {}
        self._checked: dict[Entry, int] = {}
        """How many of an entry's published messages its effects have passed."""
        self._records: dict[int, PartitionRecord] = {}
        self._over_at: dict[tuple[int, int], float] = {}
        """(partition, epoch) → when a higher epoch was written."""
        self._parked: set[Entry] = set()
        """Keys that were parked once."""
        self._heard: dict[tuple[str, str], tuple[int, bytes | None]] = {}
        """(who heard, which key) → revision and value of its newest news: ``ctl``, ``part.<n>``."""
        self._is_lost: set[int] = set()
        """Partitions whose record somebody wrote over, or that were lost with the bucket."""
        self._lost_with_bucket: set[int] = set()
        """… the latter alone."""
        self._made_at: dict[str, float] = {}
        self._served: dict[tuple[str, str], list[tuple[float, bytes | None]]] = {}
        """(who read, which key) → when, and what it was given: progress only."""
        self._written_at: dict[int, float] = {}
        self._expected: dict[int, DonePosition] = {}
        """Partition → progress that must be respected under the current epoch."""
        self._unowned_since: dict[int, float] = {}
        self._served_epochs: dict[tuple[str, int], int] = {}
        """(instance, partition) → the highest epoch it was served under there."""

    @property
    def now(self) -> float:
        return self._scheduler.now

    def fail(self, text: str) -> NoReturn:
        raise Violation(f"at {self.now:.3f} s: {text}")

    # ---- messages ----

    def place(self, mark: int, seq: int) -> int:
        """A message's place: unlike its sequence, there is only one of each."""
        return mark * STREAM_SIZE + seq if self._has_streams else seq

    def place_of(self, message: Message) -> int:
        return self.place(message.mark, message.seq)

    def publishes(self, number: int, key: bytes | None, seq: int) -> None:
        """Note a message that is about to be stored; ``number`` is its finest partition."""
        self.num_published += 1
        for level in self.levels:
            self.published[level, number % level].seqs.append(seq)
        entry = (number % self.levels[0], seq if key is None else key)
        self.by_entry.setdefault(entry, []).append(seq)

    def drops(self, mark: int, seq: int) -> None:
        """Note that nobody will get a message any more."""
        if self.place(mark, seq) not in self.handled:
            self.dropped.add(self.place(mark, seq))

    @property
    def is_complete(self) -> bool:
        """Whether every message had its effect, or needs none."""
        return all(self._first_undone(number) is None for number in range(self.levels[0]))

    def missing(self) -> dict[int, list[int]]:
        """What is not dealt with, by partition of the first level."""
        return {
            n: [seq for seq in one.seqs if not self._is_done(n, seq)]
            for (level, n), one in self.published.items()
            if level == self.levels[0]
        }

    def _is_settled(self, mark: int, seq: int) -> bool:
        place = self.place(mark, seq)
        return place in self.handled or place in self.dropped or place in self.lettered

    def _is_done(self, mark: int, seq: int) -> bool:
        place = self.place(mark, seq)
        return place in self.handled or place in self.dropped or place in self.put_aside

    def _first_undone(self, mark: int) -> int | None:
        one = self.published[self.levels[0], mark]
        while one.num_done < len(one.seqs) and self._is_done(mark, one.seqs[one.num_done]):
            one.num_done += 1
        return one.seqs[one.num_done] if one.num_done < len(one.seqs) else None

    def _first_unsettled(self, level: int, partition: int) -> int | None:
        one = self.published[level, partition]
        mark = partition % self.levels[0]
        while one.num_settled < len(one.seqs):
            if not self._is_settled(mark, one.seqs[one.num_settled]):
                return one.seqs[one.num_settled]
            one.num_settled += 1
        return None

    # ---- handler calls and acks ----

    def begins(self, member: SimulatedMember, messages: tuple[Message, ...]) -> None:
        """A handler call begins; one call may hold several messages of a key, in order."""
        mine: set[tuple[str, int, int, bytes]] = set()
        for message in messages:
            self._check_owner(member, message)
            self._check_confirmed(member, f"handler call of {message.seq}")
            self._check_may_begin(member, message)
            self._check_done(message)
            if message.key is None:
                continue
            lane = (member.name, message.partition, message.epoch, message.key)
            if lane in self._running and lane not in mine:
                self.fail(f"key {message.key!r} has two handler calls at one time in {member.name}")
            # What was handled and is delivered again while its key is parked (progress was lost, or
            # is reset) waits in its lane while the letters are replayed, and comes after them.
            is_parked = (message.mark, message.key) in self._parked
            is_repeat = is_parked and self.place_of(message) in self.handled
            if message.seq < self._begun.get(lane, 0) and not is_repeat:
                self.fail(f"key {message.key!r}: {message.seq} began after {self._begun[lane]}")
            mine.add(lane)
            self._begun[lane] = message.seq
            self._running[lane] = message.seq

    def _check_owner(self, member: SimulatedMember, message: Message) -> None:
        where = (message.partition, message.epoch)
        owner = self._owners.setdefault(where, member.name)
        if owner != member.name:
            self.fail(f"partition {where[0]} epoch {where[1]} served by {owner} and {member.name}")

    def watches(self, member: SimulatedMember) -> None:
        """Note that a process begins to watch anew: what it had heard of may be gone."""
        for key in [key for key in self._heard if key[0] == member.name]:
            del self._heard[key]

    def hears(self, member: SimulatedMember, key: str, value: bytes | None, revision: int) -> None:
        """Note news that a process is given."""
        if key == naming.CONTROL_KEY or key.startswith(naming.PARTITION_PREFIX):
            known = self._heard.get((member.name, key))
            if known is None or revision > known[0]:
                self._heard[member.name, key] = revision, value

    def _check_may_begin(self, member: SimulatedMember, message: Message) -> None:
        number = message.partition
        for key in (naming.CONTROL_KEY, naming.partition_key(number)):
            _, heard = self._heard.get((member.name, key), (0, None))
            if heard is not None and heard == self._value(key) and _forbids(key, heard, message):
                self.fail(f"{message.seq} begins in {member.name}, which has heard {heard!r}")

    def ends(self, member: SimulatedMember, message: Message, *, is_handled: bool) -> None:
        if message.key is not None:
            lane = (member.name, message.partition, message.epoch, message.key)
            self._running.pop(lane, None)
        if is_handled:
            self.num_handled += 1
            self.handled.add(self.place_of(message))
            self._check_effects(message)

    def fails(self, member: SimulatedMember, messages: tuple[Message, ...]) -> None:
        """Note that a call failed: all of its messages are called for again."""
        for message in reversed(messages):
            if message.key is not None:
                lane = (member.name, message.partition, message.epoch, message.key)
                self._begun[lane] = min(self._begun.get(lane, message.seq), message.seq)

    def acks(self, member: SimulatedMember, message: Message) -> None:
        self._check_confirmed(member, f"ack of {message.seq}")

    def acked(self, partition: int, seq: int) -> None:
        place = self.place(partition % self.levels[0], seq)
        if place not in self.handled and place not in self.lettered and place not in self.skipped:
            self.fail(f"message {seq} of partition {partition} is acked and was not handled")

    def stored(
        self,
        client: MemoryClient,
        command: StoreLetter,
        reply: Reply,
        letters: Sequence[MemoryLetter],
    ) -> None:
        if isinstance(reply, Done):
            place = self.place_of(command.message)
            self.lettered.add(place)
            if command.reason is not LetterReason.PARK:
                self.put_aside.add(place)
            elif command.message.key is not None:
                self._parked.add((command.message.mark, command.message.key))
        ours = [
            one for one in letters if self.place_of(one.message) == self.place_of(command.message)
        ]
        if len(ours) > 1:
            self.fail(f"message {command.message.seq} has letters {ours}")

    def _check_confirmed(self, member: SimulatedMember, what: str) -> None:
        silence_s = member.now - member.confirmed_at
        if silence_s > self._timeout_s + 1e-4:
            self.fail(f"{what} by {member.name}, unconfirmed for {silence_s:.3f} s")

    def _check_done(self, message: Message) -> None:
        expected = self._expected.get(message.partition)
        if expected is None or message.epoch <= expected.epoch:
            return
        if self.place_of(message) in self.lettered:
            return  # a letter that is replayed
        if _covers(expected, message.seq):
            self.fail(
                f"message {message.seq} of partition {message.partition} is handled again under"
                f" epoch {message.epoch}: {expected} was saved"
            )

    def _check_effects(self, message: Message) -> None:
        """Look at an entry's newest effects: each follows the one before as it was published."""
        mark = message.mark
        entry = (mark, message.seq if message.key is None else message.key)
        effects = self.sink.effects.get(entry, [])
        wanted = self.by_entry[entry]
        num_passed = self._checked.get(entry, 0)
        if effects and (num_passed == 0 or wanted[num_passed - 1] != effects[-1].seq):
            while num_passed < len(wanted) and wanted[num_passed] != effects[-1].seq:
                if not self._may_lack(mark, wanted[num_passed]):
                    break
                num_passed += 1
            if num_passed == len(wanted) or wanted[num_passed] != effects[-1].seq:
                self.fail(f"effects of {entry} are {effects}, published {wanted}")
            num_passed += 1
            self._checked[entry] = num_passed
        if len(effects) > 1 and effects[-1].epoch < effects[-2].epoch:
            self.fail(f"a stale effect was applied to {entry}: {effects}")

    def _may_lack(self, mark: int, seq: int) -> bool:
        """Whether a message may have no effect."""
        place = self.place(mark, seq)
        return place in self.dropped or place in self.put_aside

    # ---- consumers ----

    def made(self, client: MemoryClient, name: str) -> None:
        self._made_at[name] = self.now

    def pulls(self, client: MemoryClient, name: str) -> None:
        found = naming.parse_consumer(client.settings.group, name)
        assert found is not None
        over_at = self._over_at.get((found.partition, found.epoch))
        if over_at is not None and over_at < self._made_at.get(name, 0.0):
            self.fail(
                f"{client.settings.instance} pulls from {name}, made after its epoch was over"
            )

    # ---- the bucket ----

    def read(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        if key.startswith(naming.DONE_PREFIX):
            served = self._served.setdefault((client.settings.instance, key), [])
            served.append((self.now, value))

    def wrote(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        who = client.settings.instance
        if key.startswith(naming.PARTITION_PREFIX):
            if value is not None and decode(PartitionRecord, value).is_place:
                return
            partition = int(key.removeprefix(naming.PARTITION_PREFIX))
            if self._lost_with_bucket and not self._has_consumers():
                self._forget_epochs()
            self._lost_with_bucket.discard(partition)
            before = self._records.get(partition)
            if value is None:  # a partition that a resize did away with
                self._expected.pop(partition, None)
                return
            record = decode(PartitionRecord, value)
            level = record.level or self.levels[0]
            self._level_of[partition, record.epoch] = level
            self._check_floor(level, partition, record.floor, f"{key} by {who}")
            if before is not None and (before.level or self.levels[0]) != level:
                self._expected.pop(partition, None)
            if before is not None:
                self._check_epoch(partition, before, record, who)
            if before is None or record.epoch > before.epoch:
                self._change_owner(client, partition, record, before)
            self._records[partition] = record
            self._written_at[partition] = self.now
        elif key.startswith(naming.DONE_PREFIX) and value is not None:
            for partition, position in decode(DoneRecord, value).partitions.items():
                known = self._level_of.get((partition, position.epoch))
                if known is not None:
                    self._check_position(known, partition, position, key)
                for child in position.children:
                    self._check_position(child.level, child.partition, child, key)

    def _check_position(
        self, level: int, partition: int, position: DonePosition | ChildPosition, key: str
    ) -> None:
        self._check_floor(level, partition, position.floor, f"{key} of {partition} of {level}")
        for first, last in position.done:
            self._check_range(level, partition, first, last, key)

    def loses_bucket(self) -> None:
        """Forget what rested on the bucket: it is gone."""
        self._is_lost.update(self._records)
        self._lost_with_bucket.update(self._records)
        self._written_at.clear()
        self._expected.clear()
        self._served.clear()

    def _forget_epochs(self) -> None:
        """Let epochs begin anew: bucket and consumers are all lost, and that is not promised."""
        lost, self._lost_with_bucket = self._lost_with_bucket, set()
        self._is_lost -= lost
        for partition in lost:
            self._records.pop(partition, None)
        self._owners = {where: who for where, who in self._owners.items() if where[0] not in lost}
        self._over_at = {where: at for where, at in self._over_at.items() if where[0] not in lost}

    def resets(self, partition: int, level: int | None, floor: int) -> None:
        """Note that an operator has a partition go on behind a floor."""
        self._expected.pop(partition, None)
        mark = partition % self.levels[0]
        for seq in self.published[level or self.levels[0], partition].seqs:
            if seq > floor:
                break
            if not self._is_settled(mark, seq):
                self.drops(mark, seq)
                self.skipped.add(self.place(mark, seq))

    def knows(self, partition: int, record: PartitionRecord) -> None:
        """Note a record that no member wrote."""
        before = self._records.get(partition)
        if before is not None:
            self._over_at[partition, before.epoch] = self.now
        self._records[partition] = record
        self._level_of[partition, record.epoch] = record.level or self.levels[0]

    def loses_record(self, partition: int) -> None:
        """Forget what a partition's record pointed to: somebody wrote over it."""
        self._expected.pop(partition, None)
        if partition in self._records:
            self._is_lost.add(partition)

    def loses_progress(self) -> None:
        """Forget what was saved: somebody else wrote over it."""
        self._expected.clear()
        self._served.clear()

    def _check_floor(self, level: int, partition: int, floor: int, where: str) -> None:
        seq = self._first_unsettled(level, partition)
        if seq is not None and seq <= floor:
            self.fail(f"floor {floor} in {where} passes {seq}, which is not handled")

    def _check_range(self, level: int, partition: int, first: int, last: int, key: str) -> None:
        seqs = self.published[level, partition].seqs
        mark = partition % self.levels[0]
        for place in range(bisect_left(seqs, first), len(seqs)):
            if seqs[place] > last:
                return
            if not self._is_settled(mark, seqs[place]):
                self.fail(f"{first}-{last} in {key} holds {seqs[place]}, which is not handled")

    def _check_epoch(
        self, partition: int, before: PartitionRecord, record: PartitionRecord, who: str
    ) -> None:
        if record.epoch < before.epoch:
            self.fail(f"{who} lets the epoch of partition {partition} fall from {before.epoch}")
        if partition in self._is_lost and record.epoch == before.epoch:
            self.fail(f"{who} makes the record of partition {partition} anew under its old epoch")
        self._is_lost.discard(partition)
        is_same = (record.owner, record.instance) == (before.owner, before.instance)
        if record.epoch == before.epoch and not is_same:
            self.fail(
                f"{who} gives partition {partition} from {before.instance} to {record.instance}"
                f" under the same epoch {record.epoch}"
            )

    def _change_owner(
        self,
        client: MemoryClient,
        partition: int,
        record: PartitionRecord,
        before: PartitionRecord | None,
    ) -> None:
        """Work out, from what the server gave the writer, what must be respected from now on."""
        old = record.epoch - 1  # in a new bucket nobody knows of what was before
        owner = None
        if before is not None:
            old, owner = before.epoch, before.owner
            self._over_at[(partition, old)] = self.now
        expected = self._expected.get(partition)
        since = self._written_at.get(partition, 0.0)
        served = self._served.get((client.settings.instance, naming.done_key(owner or "")), [])
        for at, value in served:
            if at > since:  # the first it got for this change; later ones may be for others
                position = saved_position(value, partition)
                if position is not None and position.epoch == old:
                    expected = position
                break
        self._expected[partition] = DonePosition(
            epoch=old,
            floor=max(record.floor, expected.floor if expected is not None else 0),
            done=expected.done if expected is not None else (),
        )

    def serves(self, instance: str, partition: int, epoch: int) -> None:
        """Note that a process has a partition."""
        key = instance, partition
        self._served_epochs[key] = max(epoch, self._served_epochs.get(key, 0))

    def epoch_fault(self, instance: str, partition: int, record: PartitionRecord) -> str | None:
        """Say whether a partition's epoch is one that this process had, or below it."""
        epoch = self._served_epochs.get((instance, partition), 0)
        if record.epoch > epoch or (record.epoch, record.instance) == (epoch, instance):
            return None
        return f"partition {partition} had epoch {epoch} in {instance}, now {record}"

    # ---- time ----

    def look(self, owned: set[int], partitions: int, disturbed_at: float) -> None:
        """Check that no partition is without an active owner for too long."""
        for partition in range(partitions):
            if partition in owned:
                self._unowned_since.pop(partition, None)
                continue
            since = max(self._unowned_since.setdefault(partition, self.now), disturbed_at)
            unowned_s = self.now - since
            self.longest_unowned_s = max(self.longest_unowned_s, unowned_s)
            if unowned_s > self._bound_s:
                self.fail(f"partition {partition} is unowned for {unowned_s:.2f} s")

    def check_end(self) -> None:
        """Each effect exactly once and in order, for every key."""
        for (mark, key), wanted in self.by_entry.items():
            got = [one.seq for one in self.sink.effects.get((mark, key), [])]
            needed = [seq for seq in wanted if not self._may_lack(mark, seq)]
            if got != needed and got != [seq for seq in wanted if seq in set(got) | set(needed)]:
                self.fail(f"effects of {key!r} in {mark} are {got}, published {wanted}")


def balance_fault(loads: dict[str, int], capacities: dict[str, int]) -> str | None:
    """Say which member should give a partition to which other; None: balanced to within one."""
    for giver, load in loads.items():
        for taker, other in loads.items():
            if load * capacities[taker] > (other + 1) * capacities[giver]:
                return f"{giver} has {load}, {taker} only {other}, capacities {capacities}"
    return None


def record_of(value: bytes | None) -> PartitionRecord | None:
    """Read a partition's record; None if there is none, but a place, or nobody can read it."""
    if value is None:
        return None
    try:
        record = decode(PartitionRecord, value)
    except BadRecord:
        return None
    return None if record.is_place else record


def _forbids(key: str, value: bytes, message: Message) -> bool:
    """Whether what ``ctl`` or ``part.<n>`` says forbids to call the handler."""
    if key == naming.CONTROL_KEY:
        control = decode(ControlRecord, value)
        return control.is_paused or message.partition in control.paused
    record = record_of(value)
    return record is not None and record.epoch == message.epoch and record.stopped_seq is not None


def _covers(position: DonePosition, seq: int) -> bool:
    is_done = any(first <= seq <= last for first, last in position.done)
    return seq <= position.floor or is_done
