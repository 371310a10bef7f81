"""What the leader does: watch the members, decide who owns what, clean up.

The leader holds no state that matters: everything it decides on is in the bucket, and everything it
does is a compare-and-set there. So any member may lead, a new leader starts where the old one
stopped, and one that was deposed and does not know it yet can change nothing that moved on.

From members, current owners and what operators ask for (``ctl``), `assign` says who should own what
(`_plan`). For each partition the leader then compares its record with that (`_settle`):

====================================== =========================================================
the record says                        the leader
====================================== =========================================================
there is none, or it is of another     makes one: after a resize from what was handed on, else
number of partitions                   above every epoch it knows of from a record that was lost
                                       or from what is left over (``survey.py``)
nobody owns it                         gives it to the target (`take_away` from nobody)
owner alive and the target             nothing; calls off a move that is under way
owner alive and not the target         writes ``next``; the owner drains and gives it away.
                                       After ``drain_timeout_s`` takes it away
owner dead, or another process by the  takes it away for the target; a dead member with a static
same name                              name keeps what it has for ``static_grace_s``
a newer version wrote it               leaves it alone
====================================== =========================================================

At most one script per partition runs at a time. What fails is looked at again with the next tick.

**When it plans.** A death, a process that took a name over, and what an operator asks for are
planned for at once, and so is everything while partitions are without an owner. Members that come
and go while all is served are planned for together, ``batch_s`` after the last of them (but no
later than ``batch_max_s`` after the first): a deploy moves partitions once, not once per process.
So are those a new group begins with.

**Resize** (``cfg.resize_to``) is one barrier for the whole group, and whoever leads goes on with it
from what the bucket says:

1. every partition is drained, and released to nobody; a dead owner's is taken away to nobody;
2. when all are free, what their owners saved is turned into what the new partitions begin with
   (``resize.py``) and written under keys of its own (``barrier.py``);
3. ``cfg`` says the new number and a ``base_epoch`` above every epoch there was. This one
   compare-and-set decides; before it the old partitions can be given out again as if nothing had
   been, after it their records are of another number of partitions and so nobody's;
4. the new partitions' records are made, their epochs from ``base_epoch`` + 1 on.

A deposed leader that has not heard of step 3 may still give an old partition to somebody: its
record says that it is an old one, and its epoch is at most ``base_epoch``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..events import (
    Cause,
    GroupEvent,
    Joined,
    LeaderChanged,
    Left,
    MemberDead,
)
from ..model import (
    ControlRecord,
    MemberRecord,
    PartitionRecord,
    PartitionState,
)
from ..naming import (
    CONFIG_KEY,
    CONTROL_KEY,
    LEADER_KEY,
    member_key,
    partition_key,
)
from ..ports import (
    Listen,
)
from .assign import Candidate, assign
from .barrier import Barrier
from .chronicle import Chronicle
from .context import Context, Part
from .detector import Detector, Verdict
from .election import claim
from .handoff import RETRY_S, take_away, write_partition
from .reconciler import Reconciler
from .resize import CHUNK
from .steps import Pause, Script
from .survey import Survey

NEVER = float("inf")
_CAUSES = {"no responders": Cause.NO_RESPONDERS, "silent": Cause.MISSED_HEARTBEATS}


@dataclass(frozen=True, slots=True)
class _Death:
    instance: str
    at: float
    cause: Cause
    heard_at: float


_NOBODY = _Death("", 0.0, Cause.LEFT, 0.0)


class Leader:
    """The leader's part of a member, while it leads."""

    def __init__(self, context: Context, dead: dict[str, Verdict]) -> None:
        """``dead``: those already known to be dead (the leader before)."""
        self.context = context
        self.detector = Detector(context.settings.timing)
        self.chronicle = Chronicle(context)
        now = context.now
        self._deaths: dict[str, _Death] = {}
        self._graces: dict[str, float] = {}
        """Dead member → when its grace ends, if its name is static."""
        self._seen = dict(context.book.members)
        """The members as they were last looked at."""
        self._gone: dict[str, Cause] = {}
        """Members whose records are gone, and why."""
        self._target: dict[int, str] = {}
        self._cause = Cause.JOINED
        """Why the plan differs from the one before, where nothing nearer explains a move."""
        self._homes: dict[int, str] = {}
        """Partition → the value of ``prefer_label`` its owner had."""
        self._plan_at = now
        self._is_short = False
        """Whether the plan left partitions without an owner."""
        self._waiting_since: float | None = None
        """When the first join or leave that waits for others to follow was seen."""
        self._touched: set[int] = set()
        self._moving_since: dict[int, tuple[int, float]] = {}
        self._survey = Survey(context)
        self._barrier = Barrier(context)
        self._reconciler = Reconciler(context, self.keep)
        self._reconcile_at = now + context.settings.timing.reconcile_interval_s / 5
        self._renew_at = now + context.settings.timing.lease_s / 3
        context.out.append(Listen(member=None))
        self.chronicle.keep(LeaderChanged(leader=context.settings.member))
        for verdict in dead.values():
            record = context.book.members.get(verdict.member)
            if record is not None and record.instance == verdict.instance:
                self.on_verdict(verdict)
        if not context.book.partitions:
            self._plan_at = NEVER
            self._plan_soon(Cause.JOINED)
        self._watch_members()
        self.detector.suspect_all(now)

    # ---- happenings ----

    def on_members(self) -> None:
        """The members changed: plan anew, some at once and some together."""
        before, self._seen = self._seen, dict(self.context.book.members)
        for member, record in self._seen.items():
            old = before.get(member)
            if old == record:
                continue
            if old is None:
                self._gone.pop(member, None)
                self.keep(Joined(member=member))
                self._plan_soon(Cause.JOINED)
            elif old.instance != record.instance:
                self._note_restart(member, old.instance)
            elif record.is_leaving and not old.is_leaving:
                self._plan_soon(Cause.LEFT)
            else:
                self._plan_now(Cause.REBALANCED)
        for member in before.keys() - self._seen.keys():
            self._on_gone(member, before[member])

    def _on_gone(self, member: str, record: MemberRecord) -> None:
        death = self._deaths.get(member)
        if death is not None and death.instance == record.instance:
            self._gone[member] = death.cause
        else:
            self._gone[member] = Cause.LEFT if record.is_leaving else Cause.MISSED_HEARTBEATS
            self.keep(Left(member=member))
        if not record.is_static:
            self._forget_wishes(member)
        if member in self._target.values():
            self._plan_now(self._gone[member])
        else:
            self._plan_soon(self._gone[member])

    def on_control(self) -> None:
        """Operators asked for something else."""
        self._plan_now(Cause.REBALANCED)

    def on_config(self) -> None:
        """The number of partitions changed, or is to change."""
        self._plan_now(Cause.RESIZED)
        self._reconcile_at = min(self._reconcile_at, self.context.now + RETRY_S)

    def on_partition(self, partition: int) -> None:
        """A partition's record changed: compare it with the plan."""
        self._touched.add(partition)

    def on_heard(self, member: str, instance: str, deaf_s: float) -> None:
        """A heartbeat; one of a member thought dead brings it back, if it is still a member."""
        self.detector.heard(member, instance, self.context.now, deaf_s)
        death = self._deaths.get(member)
        if death is not None and death.instance == instance and not self.detector.is_deaf(deaf_s):
            del self._deaths[member]
            self._plan_now(Cause.JOINED)

    def on_verdict(self, verdict: Verdict) -> None:
        """A member is dead."""
        self._note_death(verdict)
        self.context.tell(MemberDead(member=verdict.member, reason=verdict.reason))

    def _note_death(self, verdict: Verdict) -> None:
        now = self.context.now
        cause = _CAUSES.get(verdict.reason, Cause.MISSED_HEARTBEATS)
        self._deaths[verdict.member] = _Death(verdict.instance, now, cause, verdict.heard_at)
        grace_s = self.context.settings.timing.static_grace_s
        if grace_s:
            self._graces[verdict.member] = now + grace_s
        self.keep(MemberDead(member=verdict.member, reason=verdict.reason))
        self._plan_now(cause)

    def _note_restart(self, member: str, instance: str) -> None:
        """Another process has the name: the one before is over, dead or not."""
        if self._deaths.get(member, _NOBODY).instance != instance:
            now = self.context.now
            heard_at = self.detector.heard_at(member, now)
            self._deaths[member] = _Death(instance, now, Cause.RESTARTED, heard_at)
        self._plan_now(Cause.RESTARTED)

    def step_down(self) -> None:
        """Abandon everything under way: somebody else leads."""
        self.context.steps.cancel_if(lambda key: isinstance(key, tuple) and key[0] == "lead")

    def keep(self, event: GroupEvent) -> None:
        """Keep an event of the group; who sees it tells it for itself."""
        self.chronicle.keep(event)

    # ---- time ----

    def tick(self) -> None:
        """Plan, settle, reconcile, renew: whatever is due."""
        context = self.context
        now = context.now
        if not context.is_connected or CONFIG_KEY in context.book.too_new:
            return
        timing = context.settings.timing
        for member, ends_at in list(self._graces.items()):
            if now >= ends_at:
                del self._graces[member]
                self._plan_now(self._cause)
        if now >= self._plan_at:
            self._plan()
        overdue = self._overdue()
        for partition in sorted(self._touched | overdue):
            self._settle(partition)
        self._touched.clear()
        for partition in overdue & self._moving_since.keys():
            if ("lead", partition) not in context.steps:  # nothing can be done about it yet
                epoch, _ = self._moving_since[partition]
                self._moving_since[partition] = epoch, now
        self._go_on_with_resize()
        if now >= self._reconcile_at:
            self._reconcile_at = now + timing.reconcile_interval_s
            self._drop_lapsed()
            context.steps.start(("lead", "reconcile"), self._reconciler.look(), now)
        if now >= self._renew_at:
            self._renew_at = now + timing.lease_s / 3
            context.steps.start(("lead", "renew"), self._renew(), now)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if not self.context.is_connected or CONFIG_KEY in self.context.book.too_new:
            return NEVER
        if self._touched:
            return self.context.now
        deadline = min(self._plan_at, self._reconcile_at, self._renew_at)
        timing = self.context.settings.timing
        for number, (_, since) in self._moving_since.items():
            if ("lead", number) not in self.context.steps:
                deadline = min(deadline, since + timing.drain_timeout_s)
        return min(deadline, *self._graces.values(), NEVER)

    def _overdue(self) -> set[int]:
        timeout_s = self.context.settings.timing.drain_timeout_s
        return {
            n
            for n, (_, since) in self._moving_since.items()
            if self.context.now >= since + timeout_s
        }

    def _plan_now(self, cause: Cause) -> None:
        self._plan_at = min(self._plan_at, self.context.now)
        self._cause = cause

    def _plan_soon(self, cause: Cause) -> None:
        """Plan when no more members come or go, unless somebody waits for a plan now."""
        now = self.context.now
        timing = self.context.settings.timing
        self._cause = cause
        if self._plan_at <= now:
            return
        if self._is_short:
            self._plan_at = now
            return
        if self._waiting_since is None:
            self._waiting_since = now
        self._plan_at = min(now + timing.batch_s, self._waiting_since + timing.batch_max_s)

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
        context = self.context
        book = context.book
        self._plan_at = NEVER
        self._waiting_since = None
        named = {record.instance for record in book.partitions.values()}
        named |= {record.instance for record in book.members.values()}
        self._deaths = {
            member: death for member, death in self._deaths.items() if death.instance in named
        }
        self._watch_members()
        candidates = self._candidates()
        count = context.num_partitions
        present = {candidate.member for candidate in candidates}
        owners = {}
        for number, part in book.partitions.items():
            if context.is_current(part):
                owner = part.next if part.next in present else part.owner
                if owner in present:
                    owners[number] = owner
        self._target = {}
        if context.resize_to is None:
            self._target = assign(
                candidates,
                count,
                owners,
                pins=book.control.pins,
                prefer_label=context.config.prefer_label,
                homes=self._find_homes(),
            )
        self._is_short = len(self._target) < count
        if all(number in book.partitions for number in range(count)):
            self._survey.forget()
        self._touched.update(range(count), book.partitions)

    def _candidates(self) -> list[Candidate]:
        candidates = []
        draining = self.context.book.control.draining
        for member, record in self.context.book.members.items():
            if self._is_over(member, record):
                self._bury(member)
                continue
            is_full = record.is_leaving or member in draining
            capacity = 0 if is_full else record.capacity
            candidates.append(Candidate(member=member, capacity=capacity, labels=record.labels))
        return candidates

    def _find_homes(self) -> dict[int, str]:
        """Remember where partitions were at home, for when their owners are no members any more."""
        label = self.context.config.prefer_label
        if label is not None:
            for number, part in self.context.book.partitions.items():
                member = self.context.book.members.get(part.owner or "")
                if member is not None and label in member.labels:
                    self._homes[number] = member.labels[label]
        return self._homes

    def _bury(self, member: str) -> None:
        if ("lead", "bury", member) not in self.context.steps:
            self.context.steps.start(
                ("lead", "bury", member), self._bury_script(member), self.context.now
            )

    def _bury_script(self, member: str) -> Script:
        if not (yield from self.context.delete(member_key(member))):
            yield Pause(RETRY_S)
            self._plan_now(self._cause)

    def _drop_lapsed(self) -> None:
        for member in self.context.book.members:
            is_me = member == self.context.settings.member
            if not is_me and self.context.has_lapsed(member_key(member)):
                self._bury(member)

    # ---- what operators asked for ----

    def _forget_wishes(self, member: str) -> None:
        if _without(self.context.book.control, member) != self.context.book.control:
            key = ("lead", "forget", member)
            self.context.steps.start(key, self._forget_script(member), self.context.now)

    def _forget_script(self, member: str) -> Script:
        """Take a member that is gone for good out of ``ctl``: its name never comes again."""
        context = self.context
        while (control := _without(context.book.control, member)) != context.book.control:
            if member in context.book.members:
                return
            if not (yield from context.write(CONTROL_KEY, control)):
                yield Pause(RETRY_S)

    # ---- one partition ----

    def _settle(self, partition: int) -> None:
        context = self.context
        if ("lead", partition) in context.steps:
            return
        if partition_key(partition) in context.book.too_new:
            return
        record = context.book.partitions.get(partition)
        if partition >= context.num_partitions:
            self._drop(partition, record)
            return
        target = self._target.get(partition)
        member = context.book.members.get(target) if target is not None else None
        if member is None:
            target = None
        instance = member.instance if member is not None else None
        if record is None or not context.is_current(record):
            self._create(partition, target, instance)
            return
        self._watch_move(partition, record)
        if record.owner is None:
            if target is not None:
                self._take_away(partition, record, target, instance)
        elif self._is_owner_gone(record):
            self._take_away(partition, record, target, instance)
        else:
            self._settle_living(partition, record, target, instance)

    def _settle_living(
        self, partition: int, record: PartitionRecord, target: str | None, instance: str | None
    ) -> None:
        """Compare the record of a partition whose owner is there with the plan."""
        if target == record.owner:
            if record.state is PartitionState.MOVING:
                self._write_move(partition, record, PartitionState.OWNED, None, None)
        elif self._is_held_by_the_dead(record):
            return
        elif record.state is not PartitionState.MOVING or (
            (record.next, record.next_instance) != (target, instance)
        ):
            self._write_move(partition, record, PartitionState.MOVING, target, instance)
        elif partition in self._overdue():
            self._take_away(partition, record, target, instance)

    def _is_owner_gone(self, record: PartitionRecord) -> bool:
        assert record.owner is not None
        member = self.context.book.members.get(record.owner)
        if member is None or member.instance != record.instance:
            return True
        if self.context.resize_to is not None:
            return self._is_dead(record.owner, member)
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

    def _take_away(
        self, partition: int, record: PartitionRecord, target: str | None, instance: str | None
    ) -> None:
        cause, stopped_ns = self._forced_cause(partition, record)
        self._run(
            partition,
            take_away(
                self.context, partition, target, instance, cause=cause, stopped_ns=stopped_ns
            ),
        )

    def _forced_cause(self, partition: int, record: PartitionRecord) -> tuple[str, int]:
        """Why a partition is given or taken away without its owner, and when it stood still."""
        context = self.context
        if record.owner is None:
            is_kept = record.cause in (Cause.RESIZED, Cause.RESET)
            return record.cause if is_kept else Cause.JOINED, record.stopped_ns
        member = context.book.members.get(record.owner)
        is_restarted = member is not None and member.instance != record.instance
        death = self._deaths.get(record.owner)
        if death is not None and death.instance == record.instance:
            cause = Cause.RESTARTED if is_restarted else death.cause
            return cause, context.wall_at(death.heard_at)
        if is_restarted:
            return Cause.RESTARTED, 0
        if member is None:
            return self._gone.get(record.owner, Cause.MISSED_HEARTBEATS), 0
        _, since = self._moving_since.get(partition, (0, context.now))
        return record.cause, context.wall_at(since)

    def _write_move(
        self,
        partition: int,
        record: PartitionRecord,
        state: PartitionState,
        target: str | None,
        instance: str | None,
    ) -> None:
        cause = record.cause
        if state is PartitionState.MOVING:
            cause = self._graceful_cause(partition, record)
        new = replace(record, next=target, next_instance=instance, state=state, cause=cause)
        revision = self.context.book.revision(partition_key(partition))
        self._run(partition, _no_result(self.context, partition, new, revision))

    def _graceful_cause(self, partition: int, record: PartitionRecord) -> Cause:
        """Why a living owner is to give a partition away."""
        book = self.context.book
        assert record.owner is not None
        if self.context.resize_to is not None:
            return Cause.RESIZED
        if book.members[record.owner].is_leaving:
            return Cause.LEFT
        if record.owner in book.control.draining:
            return Cause.DRAINED
        if book.control.pins.get(partition) == self._target.get(partition, ""):
            return Cause.MOVED
        return self._cause

    # ---- records that are missing, or are of another number of partitions ----

    def _drop(self, partition: int, record: PartitionRecord | None) -> None:
        """Delete the record of a partition that is no more."""
        if record is not None and record.epoch <= self.context.config.base_epoch:
            self._run(partition, self._drop_script(partition))

    def _drop_script(self, partition: int) -> Script:
        if not (yield from self.context.delete(partition_key(partition))):
            yield Pause(RETRY_S)
            yield from self.context.refresh(partition)

    def _create(self, partition: int, target: str | None, instance: str | None) -> None:
        context = self.context
        if not self._barrier.is_known(partition):
            self._look_up(("lead", "handed on", partition // CHUNK), self._barrier.read(partition))
            return
        record = self._barrier.first_record(partition)
        if record is None and not self._survey.is_done:
            self._look_up(("lead", "survey"), self._survey.run())
            return
        state = PartitionState.FREE if target is None else PartitionState.OWNED
        record = record or self._survey.first_record(partition)
        new = replace(record, owner=target, instance=instance, state=state)
        revision = context.book.revision(partition_key(partition))
        self._run(partition, _no_result(context, partition, new, revision))

    def _look_up(self, key: tuple[str | int, ...], looking: Part) -> None:
        if key not in self.context.steps:
            self.context.steps.start(key, self._then_plan(looking), self.context.now)

    def _then_plan(self, part: Part) -> Script:
        if not (yield from part):
            yield Pause(RETRY_S)
        self._plan_now(self._cause)

    def _go_on_with_resize(self) -> None:
        to = self.context.resize_to
        if to is not None and self._barrier.free_records() is not None:
            self._look_up(("lead", "resize"), self._barrier.cross(to))

    def _renew(self) -> Script:
        if not (yield from claim(self.context)):
            yield from self.context.refresh_key(LEADER_KEY)


def _without(control: ControlRecord, member: str) -> ControlRecord:
    return replace(
        control,
        pins={number: name for number, name in control.pins.items() if name != member},
        draining=tuple(name for name in control.draining if name != member),
    )


def _no_result(context: Context, partition: int, record: PartitionRecord, revision: int) -> Script:
    yield from write_partition(context, partition, record, revision)
