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
  be told, and the others will notice. A static member with a grace gives nothing away: it ends its
  running handler calls, saves, and goes; its name keeps its partitions for whoever comes under it.

What is whose: `Context` is shared; `Owner` is the data plane, `Leader` and `Election` are the
control plane, and neither calls the other: they meet in the bucket, also inside one process. News
of a key reaches them here, after the step that brought it has ended.

The edge (``worker.py``) calls `receive` and `tick`, carries out what `take_commands` gives, and
calls again at `next_deadline`. Nothing here reads a clock: ``now`` is monotonic seconds, and
``wall_ns`` (nanoseconds since 1970, 0: not known) only tells people how long something took.
"""

from enum import Enum, auto

from ..errors import (
    GroupError,
    MemberReplaced,
)
from ..events import (
    GROUP_EVENTS,
    GroupEvent,
    Joined,
    Left,
)
from ..model import (
    LeaderRecord,
    MemberSettings,
    Message,
    PartitionState,
)
from ..naming import (
    CONFIG_KEY,
    CONTROL_KEY,
    LEADER_KEY,
    MEMBER_PREFIX,
    PARKED_PREFIX,
    PARTITION_PREFIX,
    member_key,
)
from ..ports import (
    Alive,
    Announced,
    Beat,
    Broken,
    BucketGone,
    Command,
    Delivered,
    Disconnected,
    Entered,
    Failed,
    Failure,
    Flushed,
    Handled,
    Happening,
    Heard,
    KeyChanged,
    Probe,
    PullEnded,
    PullIdle,
    Reconnected,
    Reply,
    Stop,
    Watch,
    WatchCaughtUp,
)
from .book import numbered
from .context import Context
from .election import Election
from .handoff import RETRY_S, raise_outdated
from .joining import Joining
from .leader import Leader
from .owner import Owner
from .ownership import OwnershipState
from .steps import Pause, Script
from .witness import Witness


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
        self.joining = Joining(self.context, self.owner, self._end)
        self.witness = Witness(self.context)
        self.phase = Phase.JOINING
        self._is_caught_up = False
        self._beat_at = float("inf")
        self._renew_at = float("inf")
        self._leave_by = float("inf")
        self._is_out_of_time = False
        """It could not drain in time, and does no more than to take back that it leads."""
        self._stopped_at = float("-inf")
        self._probes: dict[int, str] = {}

    # ---- for the edge ----

    @property
    def partitions(self) -> dict[int, int]:
        """Partitions served here now, with their epochs."""
        return {
            n: one.epoch
            for n, one in sorted(self.owner.owned.items())
            if one.state is not OwnershipState.STARTING
        }

    def serves(self, partition: int, epoch: int) -> bool:
        """Whether work may be done here for a partition under this epoch, at this moment."""
        one = self.owner.owned.get(partition)
        return (
            one is not None
            and one.epoch == epoch
            and one.is_serving
            and self.context.is_connected
            and not self.context.is_fenced
            and self.phase is not Phase.GONE
        )

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.leader is not None

    def start(self, now: float, wall_ns: int = 0) -> None:
        """Begin to join."""
        self._set_clocks(now, wall_ns)
        self.context.steps.start("join", self._join_script(), now)

    def stop(self, now: float, wall_ns: int = 0) -> None:
        """Begin to drain and leave."""
        self._set_clocks(now, wall_ns)
        if self.phase in (Phase.LEAVING, Phase.GONE):
            return
        is_known = self.phase is Phase.MEMBER
        self.phase = Phase.LEAVING
        self._stopped_at = now
        self._leave_by = now + self.context.settings.timing.drain_timeout_s
        if not is_known:
            self._end(None)
        elif self.joining.grace_s:
            self.owner.put_down()
        else:
            self.joining.is_leaving = True
            self.context.steps.start("member", self.joining.renew(), now)
        self._settle_news()

    def receive(self, event: Happening | Reply, now: float, wall_ns: int = 0) -> None:
        """Take one happening or reply."""
        self._set_clocks(now, wall_ns)
        if self.phase is Phase.GONE:
            return
        self._take(event)
        self._settle_news()

    def tick(self, now: float, wall_ns: int = 0) -> None:
        """Do what is due by the clock."""
        self._set_clocks(now, wall_ns)
        if self.phase is Phase.GONE:
            return
        self.context.steps.tick(now)
        timing = self.context.settings.timing
        if now >= self._beat_at:
            self._beat_at += timing.heartbeat_interval_s
            if self._beat_at < now:
                self._beat_at = now + timing.heartbeat_interval_s
            if self.context.is_connected:
                self.context.out.append(
                    Beat(
                        sent_at=now,
                        deaf_s=self.context.deaf_s,
                        epoch=self.context.highest_epoch,
                    )
                )
        if now >= self._renew_at and self.context.is_connected:
            self._renew_at = now + timing.lease_s / 3
            self.context.steps.start("member", self.joining.renew(), now)
        self._watch_others()
        self.owner.tick()
        if now >= self._leave_by and self.leader is not None and not self._is_out_of_time:
            self._is_out_of_time = True
            self._leave_by = now + timing.request_timeout_s
            self.context.steps.start("leave", self._resign_and_end(), now)
        elif now >= min(self._leave_by, self._give_up_at):
            self._end(None)
        self._settle_news()

    # ---- the short way of handler calls (`Owner`) ----

    def may_begin(self, message: Message, now: float) -> bool:
        """Whether a handler call that was handed out may still begin."""
        self.context.now = now
        return self.phase is not Phase.GONE and self.owner.handing.may_begin(message)

    def next_call(self, now: float) -> tuple[Message, ...] | None:
        """Take the messages of a handler call that begins now; None: there is none to make.

        What else comes of it is let out by `flush`, soon.
        """
        self.context.now = now
        return None if self.phase is Phase.GONE else self.owner.handing.next_call()

    @property
    def num_callable(self) -> int:
        """How many handler calls could begin."""
        return 0 if self.phase is Phase.GONE else self.owner.handing.num_callable

    def handled(self, message: Message, now: float) -> Message | None:
        """Take a call that returned; the next message, if one is to be handled at once.

        What else comes of it is let out by `flush`, soon.
        """
        self.context.now = now
        return None if self.phase is Phase.GONE else self.owner.handing.handled(message)

    def flush(self, now: float) -> None:
        """Let out what `handled` gathered."""
        self.context.now = now
        if self.phase is not Phase.GONE:
            self.owner.handing.dispatch()

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

    def _set_clocks(self, now: float, wall_ns: int) -> None:
        self.context.now = now
        if wall_ns:
            self.context.wall_ns = wall_ns

    # ---- what comes in ----

    def _take(self, event: Happening | Reply) -> None:
        match event:
            case Delivered() | Handled() | PullIdle() | PullEnded() | Entered() | Flushed():
                self._take_owners(event)
            case KeyChanged():
                if "join" not in self.context.steps:  # else it is of the bucket that is gone
                    self.context.note(event.key, event.value, event.revision)
            case Heard():
                self._on_heard(event)
            case Announced():
                if self.leader is not None:
                    self.leader.chronicle.hear(event.value)
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

    def _take_owners(
        self, event: Delivered | Handled | PullIdle | PullEnded | Entered | Flushed
    ) -> None:
        match event:
            case Delivered():
                self.owner.on_delivered(event)
            case Handled():
                self.owner.handing.on_handled(event)
            case PullIdle():
                self.owner.on_idle(event)
            case PullEnded():
                self.owner.on_ended(event)
            case Entered():
                self.owner.on_entered(event)
            case Flushed():
                self.owner.on_flushed(event)

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
        self.context.highest_epoch = max(self.context.highest_epoch, event.epoch)
        if self.leader is not None:
            self.leader.on_heard(event.member, event.instance, event.deaf_s)
        else:
            self.election.heard(event.member, event.instance, event.deaf_s)

    def _on_connection_lost(self) -> None:
        self.context.is_connected = False
        self.election.detector.disconnected()
        if self.leader is not None:
            self.leader.detector.disconnected()
        self.owner.on_connection_lost()

    def _on_connection_back(self) -> None:
        now = self.context.now
        self.context.is_connected = True
        self.context.watch_lease_anew()
        self.election.detector.reconnected(now)
        if self.leader is not None:
            self.leader.detector.reconnected(now)
        if "join" not in self.context.steps:
            self._beat_at = now
            self.context.out.append(Watch())
            self.owner.on_connection_back()

    # ---- joining and leaving ----

    def _join_again(self) -> None:
        """Start over with an empty book; what is owned is kept until the new bucket decides."""
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
        yield from self.joining.join()
        self.context.out.append(Watch())
        self._beat_at = self.context.now
        self._renew_at = self.context.now + self.context.settings.timing.lease_s / 3

    def _on_caught_up(self) -> None:
        if self._is_caught_up or (self.phase is Phase.JOINING and "join" in self.context.steps):
            return
        if self.context.is_elsewhere:
            self._join_again()
            return
        self._is_caught_up = True
        self.witness.look()
        if self.phase is Phase.JOINING:
            self.phase = Phase.MEMBER
            self.context.tell(Joined(member=self.context.settings.member))
        self._on_member(self.context.settings.member)
        for key in sorted(self.context.book.too_new):
            self._tell_all(self.witness.see_key(key))
        self._on_config()
        self._on_control()
        self._on_leader()
        self._settle_all()
        for partition in self.context.book.partitions:
            self._raise_if_outdated(partition)
        self.owner.resume()

    def _leave_if_free(self) -> None:
        """End a leaving member's life once nothing names it any more."""
        if self.phase is not Phase.LEAVING or "leave" in self.context.steps:
            return
        if self.joining.grace_s:  # what it owns waits for the next process under its name
            if self.owner.is_put_down:
                self.context.steps.start("leave", self._leave_for_a_while(), self.context.now)
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

    def _leave_for_a_while(self) -> Script:
        """Save what was done, say so, let somebody else lead, and go."""
        context = self.context
        while context.has_stream and not (yield from self.owner.save()):
            yield Pause(RETRY_S)
        self.context.steps.cancel("member")
        self.joining.is_away = True
        yield from self.joining.put_member()
        yield from self._resign()
        self._end(None)

    def _leave_script(self) -> Script:
        context = self.context
        key = member_key(context.settings.member)
        context.steps.cancel("member")
        while not (yield from context.delete(key)):
            if not (yield from context.refresh_key(key)):
                yield Pause(RETRY_S)
            elif context.settings.member not in context.book.members or self.joining.is_replaced:
                break
        yield from self._resign()
        self._end(None)

    def _resign(self) -> Script:
        """Take the ``leader`` key back if it is this process's, also if it is only on its way.

        A lease that is being renewed, or a campaign that is under way, must not outlast its member.
        """
        context = self.context
        self.election.withdraw()
        context.steps.cancel(("lead", "renew"))
        settings = context.settings
        mine = LeaderRecord(member=settings.member, instance=settings.instance)
        while True:
            if not (yield from context.refresh_key(LEADER_KEY)):
                yield Pause(RETRY_S)
            elif context.book.leader != mine or (yield from context.delete(LEADER_KEY)):
                return

    def _resign_and_end(self) -> Script:
        yield from self._resign()
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
        self.owner.handing.dispatch()

    def _is_over(self) -> bool:
        return self.phase is Phase.GONE

    def _on_key(self, key: str) -> None:
        if not self._is_caught_up or self._is_over():
            return
        self._tell_all(self.witness.see_key(key))
        if key == LEADER_KEY:
            self._on_leader()
        elif key == CONFIG_KEY and self.context.is_elsewhere:
            self._join_again()
        elif key == CONFIG_KEY:
            self._on_config()
            self._settle_all()
        elif key == CONTROL_KEY:
            self._on_control()
        elif key.startswith(MEMBER_PREFIX):
            self._on_member(key.removeprefix(MEMBER_PREFIX))
        elif (partition := numbered(key, PARTITION_PREFIX)) is not None:
            self._on_partition(partition)
        elif (partition := numbered(key, PARKED_PREFIX)) is not None:
            self.owner.failures.on_parked(partition)

    def _settle_all(self) -> None:
        for partition in sorted({*range(self.context.num_partitions), *self.owner.owned}):
            self.owner.settle(partition)

    def _tell_all(self, *events: GroupEvent | None) -> None:
        """Tell what every member sees; the leader keeps it."""
        for event in events:
            if event is not None:
                self.context.tell(event)
                if self.leader is not None and isinstance(event, GROUP_EVENTS):
                    self.leader.keep(event)

    def _on_config(self) -> None:
        self._tell_all(*self.witness.see_config())
        self.owner.on_control()
        if self.leader is not None:
            self.leader.on_config()

    def _on_control(self) -> None:
        self._tell_all(*self.witness.see_control())
        self.owner.on_control()
        if self.leader is not None:
            self.leader.on_control()

    def _on_leader(self) -> None:
        settings = self.context.settings
        event = self.witness.see_leader()
        if event is not None:
            self.context.tell(event)  # who leads keeps it as the first thing it does
        mine = LeaderRecord(member=settings.member, instance=settings.instance)
        if self.context.book.leader == mine:
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
            if self.joining.is_replaced:
                self._end(MemberReplaced(member))
            elif member not in self.context.book.members and "leave" not in self.context.steps:
                self.context.steps.start("member", self.joining.renew(), self.context.now)
        if self.leader is not None:
            self.leader.on_members()

    def _on_partition(self, partition: int) -> None:
        event, is_worth_keeping = self.witness.see_partition(partition)
        if is_worth_keeping:
            self._tell_all(event)
        elif event is not None:
            self.context.tell(event)
        record = self.context.book.partitions.get(partition)
        if record is None or record.state is not PartitionState.MOVING:
            self.context.note_draining(partition, is_draining=False)
        self._raise_if_outdated(partition)
        self.owner.settle(partition)
        if self.leader is not None:
            self.leader.on_partition(partition)

    def _raise_if_outdated(self, partition: int) -> None:
        key = ("raise", partition)
        context = self.context
        if not context.has_stream and context.is_outdated(partition) and key not in context.steps:
            context.steps.start(key, raise_outdated(context, partition), context.now)

    # ---- others' lives ----

    def _watch_others(self) -> None:
        judge = self.leader if self.leader is not None else self.election
        probes, verdicts = judge.detector.tick(self.context.now, self.context.deaf_s)
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
