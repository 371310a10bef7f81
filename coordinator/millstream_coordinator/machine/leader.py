"""What the leader does: watch the members, decide who owns what, clean up.

The leader holds no state that matters: everything it decides on is in the bucket, and everything it
does is a compare-and-set there. So any member may lead, a new leader starts where the old one
stopped, and one that was deposed and does not know it yet can change nothing that moved on.

From members and current owners, `assign` says who should own what (`plan`). For each partition the
leader then compares its record with that (`settle`):

====================================== =========================================================
the record says                        the leader
====================================== =========================================================
there is none                          looks for consumers of the group that are left over
                                       (`_survey`): a new bucket starts above their epochs
nobody owns it                         gives it to the target (`take_away` from nobody)
owner alive and the target             nothing; calls off a move that is under way
owner alive and not the target         writes ``next``; the owner drains and gives it away.
                                       After ``drain_timeout_s`` takes it away
owner dead, or another process by the  takes it away for the target; a dead member with a static
same name                              name keeps what it has for ``static_grace_s``
====================================== =========================================================

At most one script per partition runs at a time. What fails is looked at again with the next tick.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..events import ConsumerReconciled, MemberDead
from ..model import LeaderRecord, MemberRecord, PartitionRecord, PartitionState, encode
from ..naming import LEADER_KEY, member_key, parse_consumer, partition_key
from ..ports import (
    Conflict,
    ConsumerNames,
    ConsumerRead,
    DeleteConsumer,
    DeleteKey,
    Done,
    ListConsumers,
    Listen,
    ReadConsumer,
    WriteKey,
    Written,
)
from .assign import Candidate, assign
from .context import Context
from .detector import Detector, Verdict
from .handoff import RETRY_S, take_away, write_partition
from .steps import Pause, Script


@dataclass(frozen=True, slots=True)
class _Death:
    instance: str
    at: float


class Leader:
    """The leader's part of a member, while it leads."""

    def __init__(self, context: Context, dead: dict[str, str]) -> None:
        """``dead``: member → instance of those already known to be dead (the leader before)."""
        self.context = context
        self.detector = Detector(context.settings.timing)
        now = context.now
        self._deaths = {member: _Death(instance, now) for member, instance in dead.items()}
        grace_s = context.settings.timing.static_grace_s
        self._graces = dict.fromkeys(dead, now + grace_s) if grace_s else {}
        """Dead member → when its grace ends, if its name is static."""
        self._target: dict[int, str] = {}
        self._is_planned = False
        self._touched: set[int] = set()
        self._moving_since: dict[int, tuple[int, float]] = {}
        self._floors: dict[int, int] | None = None
        """Floors of consumers from before the bucket was made; None: not looked for yet."""
        self._base_epoch = 0
        self._reconcile_at = now + context.settings.timing.reconcile_interval_s / 5
        self._renew_at = now + context.settings.timing.lease_s / 3
        context.out.append(Listen(member=None))
        self._watch_members()
        self.detector.suspect_all(now)

    # ---- happenings ----

    def on_members(self) -> None:
        """The members changed: plan anew."""
        self._is_planned = False

    def on_partition(self, partition: int) -> None:
        """A partition's record changed: compare it with the plan."""
        self._touched.add(partition)

    def on_heard(self, member: str, instance: str) -> None:
        """A heartbeat; one of a member thought dead brings it back, if it is still a member."""
        self.detector.heard(member, instance, self.context.now)
        death = self._deaths.get(member)
        if death is not None and death.instance == instance:
            del self._deaths[member]
            self._is_planned = False

    def on_verdict(self, verdict: Verdict) -> None:
        """A member is dead."""
        now = self.context.now
        self._deaths[verdict.member] = _Death(verdict.instance, now)
        if self.context.settings.timing.static_grace_s:
            self._graces[verdict.member] = now + self.context.settings.timing.static_grace_s
        self.context.tell(MemberDead(member=verdict.member, reason=verdict.reason))
        self._is_planned = False

    def step_down(self) -> None:
        """Abandon everything under way: somebody else leads."""
        self.context.steps.cancel_if(lambda key: isinstance(key, tuple) and key[0] == "lead")

    # ---- time ----

    def tick(self) -> None:
        """Plan, settle, reconcile, renew: whatever is due."""
        now = self.context.now
        if not self.context.is_connected:
            return
        timing = self.context.settings.timing
        for member, ends_at in list(self._graces.items()):
            if now >= ends_at:
                del self._graces[member]
                self._is_planned = False
        if not self._is_planned:
            self._plan()
        for partition in sorted(self._touched | self._overdue()):
            self._settle(partition)
        self._touched.clear()
        if now >= self._reconcile_at:
            self._reconcile_at = now + timing.reconcile_interval_s
            if self.context.has_stream:
                self.context.steps.start(("lead", "reconcile"), self._reconcile(), now)
        if now >= self._renew_at:
            self._renew_at = now + timing.lease_s / 3
            self.context.steps.start(("lead", "renew"), self._renew(), now)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if not self.context.is_connected:
            return float("inf")
        if not self._is_planned or self._touched:
            return self.context.now
        deadline = min(self._reconcile_at, self._renew_at)
        timing = self.context.settings.timing
        for _, since in self._moving_since.values():
            deadline = min(deadline, since + timing.drain_timeout_s)
        return min(deadline, *self._graces.values(), float("inf"))

    def _overdue(self) -> set[int]:
        timeout_s = self.context.settings.timing.drain_timeout_s
        return {
            n
            for n, (_, since) in self._moving_since.items()
            if self.context.now >= since + timeout_s
        }

    # ---- who is there ----

    def _watch_members(self) -> None:
        me = self.context.settings.member
        self.detector.watch(
            {
                member: record.instance
                for member, record in self.context.book.members.items()
                if member != me and not self._is_dead(member, record)
            },
            self.context.now,
        )

    def _is_dead(self, member: str, record: MemberRecord) -> bool:
        death = self._deaths.get(member)
        return death is not None and death.instance == record.instance

    def _is_over(self, member: str, record: MemberRecord) -> bool:
        """Whether a member is dead and, if its name is static, its grace is over too."""
        if not self._is_dead(member, record):
            return False
        if not record.is_static:
            return True
        since = self._deaths[member].at
        return self.context.now >= since + self.context.settings.timing.static_grace_s

    def _plan(self) -> None:
        book = self.context.book
        self._is_planned = True
        self._deaths = {
            member: death
            for member, death in self._deaths.items()
            if member in book.members and book.members[member].instance == death.instance
        }
        self._watch_members()
        candidates = []
        for member, record in book.members.items():
            if self._is_over(member, record):
                self._bury(member)
            else:
                capacity = 0 if record.is_leaving else record.capacity
                candidates.append(Candidate(member=member, capacity=capacity))
        present = {candidate.member for candidate in candidates}
        owners = {}
        for number, part in book.partitions.items():
            owner = part.next if part.next in present else part.owner
            if owner in present:
                owners[number] = owner
        self._target = assign(candidates, self.context.settings.config.partitions, owners)
        self._touched.update(range(self.context.settings.config.partitions))

    def _bury(self, member: str) -> None:
        if ("lead", "bury", member) not in self.context.steps:
            self.context.steps.start(
                ("lead", "bury", member), self._bury_script(member), self.context.now
            )

    def _bury_script(self, member: str) -> Script:
        key = member_key(member)
        revision = self.context.book.revision(key)
        reply = yield DeleteKey(id=self.context.steps.take_id(), key=key, revision=revision)
        if isinstance(reply, Written):
            self.context.note(key, None, reply.revision)
        else:
            yield Pause(RETRY_S)
            self._is_planned = False

    # ---- one partition ----

    def _settle(self, partition: int) -> None:
        context = self.context
        if ("lead", partition) in context.steps:
            return
        record = context.book.partitions.get(partition)
        target = self._target.get(partition)
        member = context.book.members.get(target) if target is not None else None
        if member is None:
            target = None
        instance = member.instance if member is not None else None
        if record is None:
            self._create(partition, target, instance)
            return
        self._watch_move(partition, record)
        if record.owner is None:
            if target is not None:
                self._run(partition, take_away(context, partition, target, instance))
        elif self._is_owner_gone(record):
            self._run(partition, take_away(context, partition, target, instance))
        elif target == record.owner:
            if record.state is PartitionState.MOVING:
                self._write(partition, record, PartitionState.OWNED, None, None)
        elif self._is_held_by_the_dead(record):
            return
        elif record.state is not PartitionState.MOVING or (
            (record.next, record.next_instance) != (target, instance)
        ):
            self._write(partition, record, PartitionState.MOVING, target, instance)
        elif partition in self._overdue():
            self._run(partition, take_away(context, partition, target, instance))

    def _is_owner_gone(self, record: PartitionRecord) -> bool:
        assert record.owner is not None
        member = self.context.book.members.get(record.owner)
        if member is None or member.instance != record.instance:
            return True
        return self._is_over(record.owner, member)

    def _is_held_by_the_dead(self, record: PartitionRecord) -> bool:
        """Whether the owner is dead and its name still within its grace."""
        assert record.owner is not None
        return self._is_dead(record.owner, self.context.book.members[record.owner])

    def _watch_move(self, partition: int, record: PartitionRecord) -> None:
        if record.state is not PartitionState.MOVING:
            self._moving_since.pop(partition, None)
            return
        epoch, _ = self._moving_since.get(partition, (None, 0.0))
        if epoch != record.epoch:
            self._moving_since[partition] = (record.epoch, self.context.now)

    def _run(self, partition: int, script: Script) -> None:
        self.context.steps.start(
            ("lead", partition), self._watched(partition, script), self.context.now
        )

    def _watched(self, partition: int, script: Script) -> Script:
        yield from script
        self._touched.add(partition)

    def _write(
        self,
        partition: int,
        record: PartitionRecord,
        state: PartitionState,
        target: str | None,
        instance: str | None,
    ) -> None:
        new = PartitionRecord(
            epoch=record.epoch,
            owner=record.owner,
            instance=record.instance,
            next=target,
            next_instance=instance,
            floor=record.floor,
            state=state,
            done_from=record.done_from,
        )
        revision = self.context.book.revision(partition_key(partition))
        self._run(partition, _no_result(self.context, partition, new, revision))

    def _create(self, partition: int, target: str | None, instance: str | None) -> None:
        if self._floors is None:
            if ("lead", "survey") not in self.context.steps:
                self.context.steps.start(("lead", "survey"), self._survey(), self.context.now)
            return
        new = PartitionRecord(
            epoch=self._base_epoch + 1,
            owner=target,
            instance=instance,
            floor=self._floors.get(partition, 0),
            state=PartitionState.FREE if target is None else PartitionState.OWNED,
        )
        revision = self.context.book.revision(partition_key(partition))
        self._run(partition, _no_result(self.context, partition, new, revision))

    def _survey(self) -> Script:
        """Find the highest epoch and the floors that consumers left from before know."""
        context = self.context
        newest: dict[int, int] = {}
        floors: dict[int, int] = {}
        if context.has_stream:
            listed = yield ListConsumers(id=context.steps.take_id())
            if not isinstance(listed, ConsumerNames):
                yield Pause(RETRY_S)
                self._is_planned = False
                return
            for name in listed.names:
                found = parse_consumer(context.settings.group, name)
                if found is not None:
                    newest[found.partition] = max(found.epoch, newest.get(found.partition, 0))
            for partition, epoch in newest.items():
                info = yield ReadConsumer(
                    id=context.steps.take_id(), name=context.consumer(partition, epoch)
                )
                if not isinstance(info, ConsumerRead):
                    yield Pause(RETRY_S)
                    self._is_planned = False
                    return
                floors[partition] = info.ack_floor
        self._base_epoch = max(newest.values(), default=0)
        self._floors = floors
        self._is_planned = False

    # ---- cleaning up ----

    def _reconcile(self) -> Script:
        """Delete every consumer of the group whose epoch is not current.

        A paused process may wake up and make the consumer of an epoch that is long over; on a
        work-queue stream it blocks the right one. The records are read after the list, so no
        consumer in the list can be newer than what is compared with it.
        """
        context = self.context
        listed = yield ListConsumers(id=context.steps.take_id())
        if not isinstance(listed, ConsumerNames):
            return
        for name in listed.names:
            found = parse_consumer(context.settings.group, name)
            if found is None:
                continue
            record = context.book.partitions.get(found.partition)
            if record is not None and record.epoch == found.epoch:
                continue
            if not (yield from context.refresh(found.partition)):
                return
            record = context.book.partitions.get(found.partition)
            if record is None or record.epoch == found.epoch:
                continue
            deleted = yield DeleteConsumer(id=context.steps.take_id(), name=name)
            if isinstance(deleted, Done):
                context.tell(ConsumerReconciled(consumer=name))

    def _renew(self) -> Script:
        context = self.context
        settings = context.settings
        value = encode(LeaderRecord(member=settings.member, instance=settings.instance))
        reply = yield WriteKey(
            id=context.steps.take_id(),
            key=LEADER_KEY,
            value=value,
            revision=context.book.revision(LEADER_KEY),
            ttl_s=settings.timing.lease_s,
        )
        if isinstance(reply, Written):
            context.note(LEADER_KEY, value, reply.revision)
        elif isinstance(reply, Conflict):
            yield from context.refresh_key(LEADER_KEY)


def _no_result(context: Context, partition: int, record: PartitionRecord, revision: int) -> Script:
    yield from write_partition(context, partition, record, revision)
