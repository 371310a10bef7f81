"""The group machine: one member of a partitioned group, without I/O.

    happenings, replies, now ──▶ GroupMachine ──▶ commands, next deadline

A member goes through these phases:

    JOINING ──▶ MEMBER ──▶ LEAVING ──▶ GONE
       ▲           │
       └───────────┘ the bucket is gone, or this member's record is

* **JOINING**: make the bucket, agree on ``cfg``, load what this name saved before, write
  ``members.<id>``, watch the bucket until caught up.
* **MEMBER**: heartbeats; `Owner` serves what ``part.<n>`` gives it; `Leader` or `Election`.
* **LEAVING**: ``members.<id>`` says so, the leader moves everything away, the member drains. When
  nothing names it any more it deletes its record and ends; without that, after
  ``drain_timeout_s``. When no heartbeat comes back and no handler runs it ends sooner: nobody can
  be told, and the others will notice.

What is whose: `Context` is shared; `Owner` is the data plane, `Leader` and `Election` are the
control plane, and neither calls the other: they meet in the bucket, also inside one process. News
of a key reaches them here, after the step that brought it has ended.

The edge (``worker.py``) calls `receive` and `tick`, carries out what `take_commands` gives, and
calls again at `next_deadline`. Nothing here reads a clock: ``now`` is monotonic seconds.
"""

from dataclasses import replace
from enum import Enum, auto

from ..errors import BadRecord, ConfigMismatch, GroupError, MemberReplaced, StreamUnfit
from ..events import Joined, LeaderChanged, Left, PartitionMoved
from ..model import ConfigRecord, LeaderRecord, MemberRecord, MemberSettings, decode, encode
from ..naming import (
    CONFIG_KEY,
    LEADER_KEY,
    MEMBER_PREFIX,
    PARTITION_PREFIX,
    member_key,
)
from ..ports import (
    Alive,
    Beat,
    Broken,
    BucketGone,
    Command,
    DeleteKey,
    Delivered,
    Disconnected,
    Failed,
    Failure,
    Handled,
    Happening,
    Heard,
    KeyChanged,
    KeyRead,
    Prepare,
    Prepared,
    Probe,
    PullEnded,
    PullIdle,
    ReadKey,
    Reconnected,
    Reply,
    Stop,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)
from .context import Context, Part
from .election import Election
from .handoff import RETRY_S
from .leader import Leader
from .owner import Owner
from .ownership import OwnershipState
from .steps import Pause, Script


class Phase(Enum):
    """Where a member stands in its life."""

    JOINING = auto()
    MEMBER = auto()
    LEAVING = auto()
    GONE = auto()


class GroupMachine:
    """One member. Drive it with `start`, `receive`, `tick`; empty it with `take_commands`."""

    def __init__(self, settings: MemberSettings) -> None:
        self.context = Context(settings)
        self.owner = Owner(self.context)
        self.leader: Leader | None = None
        self.election = Election(self.context)
        self.phase = Phase.JOINING
        self._is_caught_up = False
        self._beat_at = float("inf")
        self._renew_at = float("inf")
        self._leave_by = float("inf")
        self._stopped_at = float("-inf")
        self._probes: dict[int, str] = {}
        self._known_leader: str | None = None
        self._known_owners: dict[int, tuple[int, str | None]] = {}

    # ---- for the edge ----

    @property
    def partitions(self) -> dict[int, int]:
        """Partitions served here now, with their epochs."""
        return {
            n: one.epoch
            for n, one in sorted(self.owner.owned.items())
            if one.state is not OwnershipState.STARTING
        }

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.leader is not None

    def start(self, now: float) -> None:
        """Begin to join."""
        self.context.now = now
        self._join()

    def stop(self, now: float) -> None:
        """Begin to drain and leave."""
        self.context.now = now
        if self.phase in (Phase.LEAVING, Phase.GONE):
            return
        is_known = self.phase is Phase.MEMBER
        self.phase = Phase.LEAVING
        self._stopped_at = now
        self._leave_by = now + self.context.settings.timing.drain_timeout_s
        if is_known:
            self.context.steps.start("member", self._write_member(), now)
        else:
            self._end(None)
        self._settle_news()

    def receive(self, event: Happening | Reply, now: float) -> None:
        """Take one happening or reply."""
        self.context.now = now
        if self.phase is Phase.GONE:
            return
        self._take(event)
        self._settle_news()

    def tick(self, now: float) -> None:
        """Do what is due by the clock."""
        self.context.now = now
        if self.phase is Phase.GONE:
            return
        self.context.steps.tick(now)
        timing = self.context.settings.timing
        if now >= self._beat_at:
            self._beat_at += timing.heartbeat_interval_s
            if self._beat_at < now:
                self._beat_at = now + timing.heartbeat_interval_s
            if self.context.is_connected:
                self.context.out.append(Beat(sent_at=now))
        if now >= self._renew_at and self.context.is_connected:
            self._renew_at = now + timing.lease_s / 3
            self.context.steps.start("member", self._write_member(), now)
        self._watch_others()
        self.owner.tick()
        if now >= min(self._leave_by, self._give_up_at):
            self._end(None)
        self._settle_news()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity: nothing is due."""
        if self.phase is Phase.GONE:
            return float("inf")
        detector = self.leader.detector if self.leader is not None else self.election.detector
        pause = self.context.steps.next_deadline
        verdict = detector.next_deadline
        return min(
            self._beat_at,
            self._renew_at if self.context.is_connected else float("inf"),
            self._leave_by,
            self._give_up_at,
            float("inf") if pause is None else pause,
            float("inf") if verdict is None else verdict,
            self.owner.next_deadline,
            self.leader.next_deadline if self.leader is not None else self.election.next_deadline,
        )

    def take_commands(self) -> list[Command]:
        """Return what is to be done, in order, and forget it."""
        commands = self.context.out[:]
        self.context.out.clear()
        return commands

    # ---- what comes in ----

    def _take(self, event: Happening | Reply) -> None:
        match event:
            case Delivered():
                self.owner.on_delivered(event)
            case Handled():
                self.owner.on_handled(event)
            case PullIdle():
                self.owner.on_idle(event)
            case PullEnded():
                self.owner.on_ended(event)
            case KeyChanged():
                self.context.note(event.key, event.value, event.revision)
            case Heard():
                self._on_heard(event)
            case WatchCaughtUp():
                self._on_caught_up()
            case Disconnected():
                self._on_connection_lost()
            case Reconnected():
                self._on_connection_back()
            case BucketGone():
                self._join_again()
            case Broken():
                self._end(event.error)
            case _:
                self._on_reply(event)

    def _on_reply(self, reply: Reply) -> None:
        member = self._probes.pop(reply.id, None)
        if member is not None:
            self._on_probe(member, reply)
        elif isinstance(reply, Failed) and reply.reason is Failure.BUCKET_GONE:
            self._join_again()
        else:
            self.context.steps.receive(reply, self.context.now)

    def _on_heard(self, event: Heard) -> None:
        settings = self.context.settings
        if event.member == settings.member:
            if event.instance == settings.instance:
                self.context.confirmed_at = max(self.context.confirmed_at, event.sent_at)
                self.owner.tick()
            return
        if self.leader is not None:
            self.leader.on_heard(event.member, event.instance)
        else:
            self.election.detector.heard(event.member, event.instance, self.context.now)

    def _on_connection_lost(self) -> None:
        self.context.is_connected = False
        self.election.detector.disconnected()
        if self.leader is not None:
            self.leader.detector.disconnected()
        self.owner.on_connection_lost()

    def _on_connection_back(self) -> None:
        now = self.context.now
        self.context.is_connected = True
        self.election.detector.reconnected(now)
        if self.leader is not None:
            self.leader.detector.reconnected(now)
        if "join" not in self.context.steps:
            self._beat_at = now
            self.context.out.append(Watch())
            self.owner.on_connection_back()

    # ---- joining and leaving ----

    def _join(self) -> None:
        self.context.steps.start("join", self._join_script(), self.context.now)

    def _join_again(self) -> None:
        """Start over with an empty book; what is owned is kept until the new bucket decides."""
        if self.phase is Phase.JOINING and "join" not in self.context.steps:
            return
        if self.phase is Phase.LEAVING:
            self._end(None)
            return
        self.context.steps.cancel_if(lambda _: True)
        self.context.restart()
        self.leader = None
        self.election = Election(self.context)
        self.owner.hold_all()
        self.phase = Phase.JOINING
        self._is_caught_up = False
        self._renew_at = float("inf")
        self.context.steps.start("join", self._join_script(), self.context.now)

    def _join_script(self) -> Script:
        while not (yield from self._join_once()):
            yield Pause(RETRY_S)
        self.context.out.append(Watch())
        self._beat_at = self.context.now
        self._renew_at = self.context.now + self.context.settings.timing.lease_s / 3

    def _join_once(self) -> Part:
        context = self.context
        prepared = yield Prepare(id=context.steps.take_id())
        if not isinstance(prepared, Prepared):
            self._give_up_if_refused(prepared)
            return False
        if not (yield from self._agree()):
            return False
        if not (yield from self.owner.load()):
            return False
        if not (yield from context.refresh_key(member_key(context.settings.member))):
            return False
        return (yield from self._put_member())

    def _give_up_if_refused(self, reply: Reply) -> None:
        if isinstance(reply, Failed) and reply.reason in (Failure.REFUSED, Failure.STREAM_GONE):
            stream = self.context.settings.config.stream or ""
            self._end(StreamUnfit(stream, reply.detail))

    def _agree(self) -> Part:
        """Write ``cfg``, or find that it says the same; who only leads knows no filter."""
        context = self.context
        wanted = context.settings.config
        read = yield ReadKey(id=context.steps.take_id(), key=CONFIG_KEY)
        if not isinstance(read, KeyRead):
            return False
        if read.value is None:
            return (yield from self._put_config(read.revision))
        try:
            found = decode(ConfigRecord, read.value)
        except BadRecord as error:
            self._end(error)
            return False
        if found.filter is None and wanted.filter is not None:
            found = replace(found, filter=wanted.filter)
            if found == wanted:
                return (yield from self._put_config(read.revision))
        if wanted.filter is None:
            wanted = replace(wanted, filter=found.filter)
        if found != wanted:
            self._end(ConfigMismatch(context.settings.group, _text(wanted), _text(found)))
            return False
        return True

    def _put_config(self, revision: int) -> Part:
        value = encode(self.context.settings.config)
        id_ = self.context.steps.take_id()
        wrote = yield WriteKey(id=id_, key=CONFIG_KEY, value=value, revision=revision)
        return isinstance(wrote, Written)

    def _put_member(self) -> Part:
        """Write ``members.<id>`` over whatever is known to be there."""
        context = self.context
        settings = context.settings
        key = member_key(settings.member)
        value = encode(
            MemberRecord(
                instance=settings.instance,
                capacity=settings.capacity,
                labels=settings.labels,
                host=settings.host,
                pid=settings.pid,
                joined_ns=settings.joined_ns,
                is_static=settings.is_static,
                is_leaving=self.phase is Phase.LEAVING,
            )
        )
        wrote = yield WriteKey(
            id=context.steps.take_id(),
            key=key,
            value=value,
            revision=context.book.revision(key),
            ttl_s=settings.timing.lease_s,
        )
        if not isinstance(wrote, Written):
            return False
        context.note(key, value, wrote.revision)
        return True

    def _write_member(self) -> Script:
        """Renew ``members.<id>``, unless another process has the name now."""
        key = member_key(self.context.settings.member)
        while not (yield from self._put_member()):
            yield Pause(RETRY_S)
            yield from self.context.refresh_key(key)
            if self._is_replaced():
                return

    def _is_replaced(self) -> bool:
        settings = self.context.settings
        record = self.context.book.members.get(settings.member)
        return record is not None and record.instance != settings.instance

    def _on_caught_up(self) -> None:
        if self._is_caught_up or (self.phase is Phase.JOINING and "join" in self.context.steps):
            return
        self._is_caught_up = True
        if self.phase is Phase.JOINING:
            self.phase = Phase.MEMBER
            self.context.tell(Joined(member=self.context.settings.member))
        self._on_leader()
        for partition in range(self.context.settings.config.partitions):
            self.owner.settle(partition)
        self.owner.resume()

    def _leave_if_free(self) -> None:
        """End a leaving member's life once nothing names it any more."""
        if self.phase is not Phase.LEAVING or "leave" in self.context.steps:
            return
        settings = self.context.settings
        record = self.context.book.members.get(settings.member)
        if record is None or not record.is_leaving:
            return
        for part in self.context.book.partitions.values():
            if self.context.is_mine(part) or part.next == settings.member:
                return
        self.context.steps.start("leave", self._leave_script(), self.context.now)

    @property
    def _give_up_at(self) -> float:
        """When a leaving member that hears nothing stops waiting to be relieved.

        With a connection it is asked once more before that: a member that was paused, or has just
        joined, has old heartbeats and a server that answers.
        """
        if self.phase is not Phase.LEAVING or self.owner.num_running:
            return float("inf")
        heard_at = self.context.confirmed_at
        if self.context.is_connected:
            heard_at = max(heard_at, self._stopped_at)
        return heard_at + self.context.settings.timing.heartbeat_timeout_s

    def _leave_script(self) -> Script:
        context = self.context
        keys = [member_key(context.settings.member)]
        if self.leader is not None:
            keys.append(LEADER_KEY)
        self.context.steps.cancel("member")
        for key in keys:
            yield DeleteKey(
                id=context.steps.take_id(), key=key, revision=context.book.revision(key)
            )
        self._end(None)

    def _end(self, error: GroupError | None) -> None:
        if self.phase is Phase.GONE:
            return
        if error is None:
            self.context.tell(Left(member=self.context.settings.member))
        self.owner.close()
        self.phase = Phase.GONE
        self.context.out.append(Stop(error=error))

    # ---- news of keys ----

    def _settle_news(self) -> None:
        """Tell the machines what changed, until nothing new comes of it; then start handlers."""
        if self._is_over():
            return
        while True:
            while self.context.changed:
                self._on_key(self.context.changed.pop(0))
            if self._is_over():
                return
            if self.leader is not None:
                self.leader.tick()
            else:
                self.election.tick()
            if not self.context.changed:
                break
        self._leave_if_free()
        self.owner.dispatch()

    def _is_over(self) -> bool:
        return self.phase is Phase.GONE

    def _on_key(self, key: str) -> None:
        if not self._is_caught_up or self._is_over():
            return
        if key == LEADER_KEY:
            self._on_leader()
        elif key.startswith(MEMBER_PREFIX):
            self._on_member(key.removeprefix(MEMBER_PREFIX))
        elif key.startswith(PARTITION_PREFIX):
            self._on_partition(int(key.removeprefix(PARTITION_PREFIX)))

    def _on_leader(self) -> None:
        settings = self.context.settings
        leader = self.context.book.leader
        name = leader.member if leader is not None else None
        if name != self._known_leader:
            self._known_leader = name
            self.context.tell(LeaderChanged(leader=name))
        mine = LeaderRecord(member=settings.member, instance=settings.instance)
        if leader == mine:
            if self.leader is None:
                self.leader = Leader(self.context, self.election.dead)
                self.election = Election(self.context)
            return
        if self.leader is not None:
            self.leader.step_down()
            self.leader = None
        self.election.on_leader()

    def _on_member(self, member: str) -> None:
        if member == self.context.settings.member:
            if self._is_replaced():
                self._end(MemberReplaced(member))
            elif member not in self.context.book.members and "leave" not in self.context.steps:
                self.context.steps.start("member", self._write_member(), self.context.now)
        if self.leader is not None:
            self.leader.on_members()

    def _on_partition(self, partition: int) -> None:
        record = self.context.book.partitions.get(partition)
        if record is not None:
            _, previous = self._known_owners.get(partition, (0, None))
            if self._known_owners.get(partition) != (record.epoch, record.owner):
                self._known_owners[partition] = (record.epoch, record.owner)
                self.context.tell(
                    PartitionMoved(
                        partition=partition,
                        epoch=record.epoch,
                        owner=record.owner,
                        previous=previous,
                    )
                )
        self.owner.settle(partition)
        if self.leader is not None:
            self.leader.on_partition(partition)

    # ---- others' lives ----

    def _watch_others(self) -> None:
        judge = self.leader if self.leader is not None else self.election
        probes, verdicts = judge.detector.tick(self.context.now)
        for member in probes:
            id_ = self.context.steps.take_id()
            self._probes[id_] = member
            self.context.out.append(Probe(id=id_, member=member))
        for verdict in verdicts:
            judge.on_verdict(verdict)

    def _on_probe(self, member: str, reply: Reply) -> None:
        judge = self.leader if self.leader is not None else self.election
        now = self.context.now
        if isinstance(reply, Alive):
            judge.detector.probe_answered(member, reply.instance, now)
        elif isinstance(reply, Failed) and reply.reason is Failure.NO_RESPONDERS:
            verdict = judge.detector.probe_unheard(member, now)
            if verdict is not None:
                judge.on_verdict(verdict)


def _text(config: ConfigRecord) -> str:
    return f"{config.partitions} partitions of stream {config.stream!r} by filter {config.filter!r}"
