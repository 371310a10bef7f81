"""What the machines of one member share: settings, the book, running scripts, commands to go out.

Also the clocks. ``now`` is set by the group machine before anything else runs. ``confirmed_at`` is
when the newest heartbeat that came back was *sent*: nobody else can have counted this member dead
before that plus the heartbeat timeout. ``wall_ns`` only ever tells people how long something took;
no decision rests on it, for wall clocks jump.

**Leases.** ``leader`` and ``members.<id>`` are written anew, and go by themselves when they are
not. Where the server cannot do that, who looks on does: a ``leader`` whose revision did not change
for ``lease_s``, by the clock of who watches it, ran out, and may be overwritten by compare-and-set.
No two clocks are compared. (A member's record needs no such thing: its leader watches the process.)
"""

from collections.abc import Generator

from ..events import GROUP_EVENTS, GroupEvent, MessageRetried, encode_events, event_object
from ..model import ConfigRecord, MemberSettings, PartitionRecord, Record, encode
from ..naming import (
    CONFIG_KEY,
    LEADER_KEY,
    PARTITION_PREFIX,
    consumer,
    partition_key,
)
from ..ports import Announce, Command, DeleteKey, KeyRead, ReadKey, Reply, Tell, WriteKey, Written
from .book import Book, numbered
from .steps import Pause, Steps

Part = Generator[Command | Pause, Reply, bool]
"""Part of a script; True if what it is for was settled, False if it is to be tried again."""


class Context:
    """Shared by the machines of one member; owned by its ``GroupMachine``."""

    def __init__(self, settings: MemberSettings) -> None:
        self.settings = settings
        self.book = Book()
        self.out: list[Command] = []
        self.steps = Steps(self.out)
        self.now = 0.0
        self.wall_ns = 0
        """Nanoseconds since 1970; 0: nobody said."""
        self.confirmed_at = float("-inf")
        self.is_connected = True
        self.may_lead = settings.can_lead
        self.begins_at = 0
        """Revision the bucket begins at that this member joined; 0: not known."""
        self.has_key_ttl = True
        self.may_overlap = False
        """Whether a consumer may be made while the one of the epoch before is still there."""
        self.changed: list[str] = []
        """Keys with news the machines have not been told yet."""
        self.highest_epoch = 0
        """Of any partition, ever heard of by a member that beats: a new bucket begins above it."""
        self.highest: dict[int, PartitionRecord] = {}
        """Each partition's record of the highest epoch ever heard of."""
        self.last_known: dict[int, PartitionRecord] = {}
        """Each partition's newest record ever heard of, also when it or the bucket was lost."""
        self._config = settings.config
        self._leader_renewed_at = 0.0
        self._drained_ns: dict[int, int] = {}

    def restart(self) -> None:
        """Forget what was known of a bucket that is gone; but not how many partitions there are."""
        self.book = Book()
        self.changed.clear()
        self._leader_renewed_at = self.now

    # ---- the group ----

    @property
    def config(self) -> ConfigRecord:
        """What the group agreed on, as last heard; before that, what this member brought along."""
        return self._config

    @property
    def num_partitions(self) -> int:
        """How many partitions there are now."""
        return self._config.active

    @property
    def resize_to(self) -> int | None:
        """How many there are to be, while that is another number and a possible one."""
        wanted = self._config.resize_to
        if wanted is None or wanted == self._config.active or wanted < 1:
            return None
        is_possible = not self.has_stream or wanted in (*self._config.levels, self.num_partitions)
        return wanted if is_possible else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether ``cfg`` is of another bucket than this member joined: of one made since."""
        return self._config.begins_at not in (0, self.begins_at)

    @property
    def has_stream(self) -> bool:
        """Whether the group has a data plane."""
        return self.settings.config.stream is not None

    @property
    def is_fenced(self) -> bool:
        """Whether this member's ownership could not be confirmed within the timeout."""
        return self.now - self.confirmed_at > self.settings.timing.heartbeat_timeout_s

    @property
    def deaf_s(self) -> float:
        """How long ago the newest of its own heartbeats that came back was sent; 0: none yet."""
        return 0.0 if self.confirmed_at == float("-inf") else self.now - self.confirmed_at

    def consumer(self, partition: int, epoch: int) -> str:
        """Name of this group's consumer."""
        return consumer(self.settings.group, partition, epoch)

    def is_current(self, record: PartitionRecord) -> bool:
        """Whether a record is of as many partitions as there are now: of others, nobody's."""
        if CONFIG_KEY in self.book.too_new:
            return False
        return (record.level or self._config.partitions) == self._config.active

    def is_mine(self, record: PartitionRecord | None) -> bool:
        """Whether a partition's record names this very process as the owner."""
        return (
            record is not None
            and record.owner == self.settings.member
            and record.instance == self.settings.instance
            and self.is_current(record)
        )

    # ---- news ----

    def note(self, key: str, value: bytes | None, revision: int) -> None:
        """Take news of a key into the book; the machines are told after the step that brought it.

        Not at once: the step may be in the middle of the script that the news abandons.
        """
        if not self.book.note(key, value, revision):
            return
        self.changed.append(key)
        if key == LEADER_KEY:
            self._leader_renewed_at = self.now
        elif key == CONFIG_KEY and self.book.config is not None:
            self._config = self.book.config
        elif (number := numbered(key, PARTITION_PREFIX)) in self.book.partitions:
            assert number is not None
            record = self.book.partitions[number]
            self.last_known[number] = record
            known = self.highest.get(number)
            if known is None or record.epoch > known.epoch:
                self.highest[number] = record
            self.highest_epoch = max(self.highest_epoch, record.epoch)

    @property
    def has_leader_lapsed(self) -> bool:
        """Whether the leader's lease was not renewed in time, where no server sees to that."""
        if self.has_key_ttl or not self.is_connected or self.book.leader is None:
            return False
        return self.now > self._leader_renewed_at + self.settings.timing.lease_s

    def watch_lease_anew(self) -> None:
        """Give the leader's lease its full time: renewals may have been missed."""
        self._leader_renewed_at = self.now

    def refresh(self, partition: int) -> Part:
        """Read a partition's record from the server into the book."""
        return (yield from self.refresh_key(partition_key(partition)))

    def refresh_key(self, key: str) -> Part:
        """Read a key from the server into the book."""
        reply = yield ReadKey(id=self.steps.take_id(), key=key)
        if not isinstance(reply, KeyRead):
            return False
        if reply.value is None and reply.revision == 0:
            self.book.reset(key)
        self.note(key, reply.value, reply.revision)
        return True

    def write(self, key: str, record: Record) -> Part:
        """Compare-and-set against what the book knows, which is right afterwards."""
        value = encode(record)
        reply = yield WriteKey(
            id=self.steps.take_id(), key=key, value=value, revision=self.book.revision(key)
        )
        if isinstance(reply, Written):
            self.note(key, value, reply.revision)
            return True
        return (yield from self.refresh_key(key)) and False

    def delete(self, key: str) -> Part:
        """Compare-and-delete against what the book knows."""
        revision = self.book.revision(key)
        reply = yield DeleteKey(id=self.steps.take_id(), key=key, revision=revision)
        if isinstance(reply, Written):
            self.note(key, None, reply.revision)
        return isinstance(reply, Written)

    def is_outdated(self, partition: int) -> bool:
        """Whether a partition's record has an epoch that was somebody else's, or a lower one.

        In one bucket that cannot be; in one made anew by somebody who knew nothing it can.
        """
        record, known = self.book.partitions.get(partition), self.highest.get(partition)
        if record is None or known is None or not self.is_current(record):
            return False
        is_same = (record.owner, record.instance) == (known.owner, known.instance)
        return record.epoch < known.epoch or (record.epoch == known.epoch and not is_same)

    # ---- telling ----

    def tell(self, event: GroupEvent) -> None:
        """Tell the world; what concerns the group reaches other processes through its leader."""
        self.out.append(Tell(event=event))
        if not isinstance(event, GROUP_EVENTS | MessageRetried):
            self.out.append(Announce(value=encode_events(self.event_object(event))))

    def event_object(self, event: GroupEvent, number: int | None = None) -> dict[str, object]:
        """Return the event as this member tells it now."""
        settings = self.settings
        return event_object(
            event, group=settings.group, member=settings.member, at_ns=self.wall_ns, number=number
        )

    def note_draining(self, partition: int, *, is_draining: bool) -> None:
        """Remember since when a partition of this member is drained."""
        if not is_draining:
            self._drained_ns.pop(partition, None)
        else:
            self._drained_ns.setdefault(partition, self.wall_ns)

    def drained_ns(self, partition: int) -> int:
        """Wall clock at which a partition's draining began here; now if it did not."""
        return self._drained_ns.get(partition, self.wall_ns)

    def wall_at(self, at: float) -> int:
        """Wall clock at an earlier ``now``; 0: not known."""
        return max(0, self.wall_ns - round((self.now - at) * 1e9)) if self.wall_ns else 0

    def standstill_s(self, record: PartitionRecord | None) -> float | None:
        """How long the partition has not been served, as its record tells; None: not known."""
        if record is None or not record.stopped_ns or not self.wall_ns:
            return None
        return max(0.0, (self.wall_ns - record.stopped_ns) / 1e9)
