"""What the leader does: watch the members, decide who owns what, clean up.

The leader holds no state that matters: everything it decides on is in the bucket, and everything it
does is a compare-and-set there. So any member may lead, a new leader starts where the old one
stopped, and one that was deposed and does not know it yet can change nothing that moved on. Nor do
two leaders take partitions from each other for long, as after a lost bucket, when each thinks the
other's members dead: a leader changes no record that was written since it last knew that it leads,
and asks first (`_has_read_since`).

From members, current owners and what operators ask for (``ctl``), `assign` says who should own what
(`_plan`). For each partition the leader then compares its record with that (`_settle`):

====================================== =========================================================
the record says                        the leader
====================================== =========================================================
there is none, or it is of another     makes one: after a resize from what was handed on, else
number of partitions                   above every epoch it knows of from a record that was lost
                                       or from what is left over (``survey.py``)
there never was one, as far as it      makes a place for it first (`_create`)
knows
nobody owns it                         gives it to the target (`take_away` from nobody), once it
                                       has read ``cfg`` since
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
So are those a new group begins with, and it waits for longer the more partitions it has: one that
is given out and then moved to whoever came next starts twice.

**Resize** (``cfg.resize_to``) is one barrier for the whole group, and whoever leads goes on with it
from what the bucket says:

1. every partition is drained, and released to nobody; a dead owner's is taken away to nobody;
2. when all are free, what their owners saved is turned into what the new partitions begin with
   (``resize.py``) and written under keys of its own (``barrier.py``);
3. ``cfg`` says the new number and a ``base_epoch`` above every epoch there was. This one
   compare-and-set decides; before it the old partitions can be given out again as if nothing had
   been, after it their records are of another number of partitions and so nobody's;
4. the new partitions' records are made, their epochs from ``base_epoch`` + 1 on.

A partition that is nobody's is given out only by who has read ``cfg`` since it was freed, so not by
a leader that has not heard of the resize that freed it. One that was paused right after reading may
still give out what was nobody's before: the record says that it is an old one. Its epoch may be
above ``base_epoch``, as that of a record is which a newer ``cfg`` made; who leads reads ``cfg``
again before it drops or replaces such a record.
"""

from __future__ import annotations

from dataclasses import replace

from ..events import (
    Cause,
    GroupEvent,
    LeaderChanged,
)
from ..model import (
    PartitionRecord,
    PartitionState,
)
from ..naming import (
    CONFIG_KEY,
    LEADER_KEY,
    partition_key,
)
from ..ports import (
    Listen,
)
from .assign import assign
from .barrier import Barrier
from .chronicle import Chronicle
from .context import Context, Part
from .detector import Verdict
from .election import claim
from .handoff import RETRY_S, take_away, write_partition
from .reconciler import Reconciler
from .resize import CHUNK
from .roster import Roster
from .steps import Pause, Script
from .survey import Survey

NEVER = float("inf")
PLACE = PartitionRecord(epoch=0)
BEGIN_AT_ONCE = 250
"""Partitions a new group begins within about ``batch_s``; with more it waits longer."""


class Leader:
    """The leader's part of a member, while it leads."""

    def __init__(self, context: Context, dead: dict[str, Verdict]) -> None:
        """``dead``: those already known to be dead (the leader before)."""
        self.context = context
        self.chronicle = Chronicle(context)
        now = context.now
        self._target: dict[int, str] = {}
        self._cause = Cause.JOINED
        """Why the plan differs from the one before, where nothing nearer explains a move."""
        self._homes: dict[int, str] = {}
        """Partition → the value of ``prefer_label`` its owner had."""
        self._plan_at = NEVER
        self._is_short = False
        """Whether the plan left partitions without an owner."""
        self._waiting_since: float | None = None
        """When the first join or leave that waits for others to follow was seen."""
        self._touched: set[int] = set()
        self._moving_since: dict[int, tuple[int, float]] = {}
        self._read_at = {LEADER_KEY: context.book.revision(LEADER_KEY)}
        """Key → the newest revision of any that was known when it was last read from the server."""
        self._waiting: set[int] = set()
        """Partitions to be looked at when what is being read now was read."""
        self._survey = Survey(context)
        self._barrier = Barrier(context)
        self._reconciler = Reconciler(context, self.keep)
        self._reconcile_at = now + context.settings.timing.reconcile_interval_s / 5
        self._renew_at = now + context.settings.timing.lease_s / 3
        context.out.append(Listen(member=None))
        self.chronicle.keep(LeaderChanged(leader=context.settings.member))
        if context.book.partitions:
            self._plan_at = now
        else:
            self._plan_soon(Cause.JOINED)
        self.roster = Roster(context, keep=self.keep, now=self._plan_now, soon=self._plan_soon)
        self.detector = self.roster.detector
        for verdict in dead.values():
            record = context.book.members.get(verdict.member)
            if record is not None and record.instance == verdict.instance:
                self.on_verdict(verdict)

    # ---- happenings ----

    def on_members(self) -> None:
        """The members changed: plan anew, some at once and some together."""
        self.roster.update()

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
        """A heartbeat."""
        self.roster.heard(member, instance, deaf_s)

    def on_verdict(self, verdict: Verdict) -> None:
        """A member is dead."""
        self.roster.bring_out(verdict)

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
        self.roster.tick()
        if now >= self._plan_at:
            self._plan()
        overdue = self._overdue()
        for partition in sorted(self._touched | overdue):
            self._settle(partition)
        self._touched.clear()
        for partition in (overdue & self._moving_since.keys()) - self._waiting:
            if ("lead", partition) not in context.steps:  # nothing can be done about it yet
                epoch, _ = self._moving_since[partition]
                self._moving_since[partition] = epoch, now
        self._go_on_with_resize()
        if now >= self._reconcile_at:
            self._reconcile_at = now + timing.reconcile_interval_s
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
            if ("lead", number) not in self.context.steps and number not in self._waiting:
                deadline = min(deadline, since + timing.drain_timeout_s)
        return min(deadline, self.roster.next_deadline)

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
        batch_s = timing.batch_s
        if not self.context.book.partitions:
            batch_s *= max(1.0, self.context.num_partitions / BEGIN_AT_ONCE)
        self._plan_at = min(now + batch_s, self._waiting_since + timing.batch_max_s)

    # ---- the plan ----

    def _plan(self) -> None:
        context = self.context
        book = context.book
        self._plan_at = NEVER
        self._waiting_since = None
        candidates = self.roster.look()
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
        records = [book.partitions.get(number) for number in range(count)]
        if all(record is not None and context.is_current(record) for record in records):
            self._survey.forget()
        self._touched.update(range(count), book.partitions)

    def _find_homes(self) -> dict[int, str]:
        """Remember where partitions were at home, for when their owners are no members any more."""
        label = self.context.config.prefer_label
        if label is not None:
            for number, part in self.context.book.partitions.items():
                member = self.roster.members.get(part.owner or "")
                if member is not None and label in member.labels:
                    self._homes[number] = member.labels[label]
        return self._homes

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
        member = self.roster.members.get(target) if target is not None else None
        if member is None:
            target = None
        instance = member.instance if member is not None else None
        if record is None or not context.is_current(record):
            self._create(partition, target, instance)
            return
        self._watch_move(partition, record)
        if record.owner is None:
            # It may have been freed for a resize, and read ahead of the ``cfg`` that ended it.
            if target is not None and self._has_read_since(CONFIG_KEY, partition):
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

    def _has_read_since(self, key: str, partition: int) -> bool:
        """Whether a key was read after the partition's record became what it is; if not, read it.

        Who wrote the record may have known a newer value than this leader does.
        """
        if self.context.book.revision(partition_key(partition)) <= self._read_at.get(key, -1):
            return True
        self._waiting.add(partition)
        if ("lead", key) not in self.context.steps:
            self.context.steps.start(("lead", key), self._read(key), self.context.now)
        return False

    def _read(self, key: str) -> Script:
        book = self.context.book
        known = book.last_revision
        if (yield from self.context.refresh_key(key)) and book.revision(key):
            self._read_at[key] = known
        else:
            yield Pause(RETRY_S)
        self._touched |= self._waiting
        self._waiting.clear()

    def _is_owner_gone(self, record: PartitionRecord) -> bool:
        assert record.owner is not None
        member = self.roster.members.get(record.owner)
        if member is None or member.instance != record.instance:
            return True
        if self.context.resize_to is not None:
            return self.roster.is_dead(record.owner, member)
        return self.roster.is_over(record.owner, member)

    def _is_held_by_the_dead(self, record: PartitionRecord) -> bool:
        """Whether the owner is dead and its name still within its grace."""
        assert record.owner is not None
        return self.roster.is_dead(record.owner, self.roster.members[record.owner])

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
        if not self._has_read_since(LEADER_KEY, partition):
            return
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
        member = self.roster.members.get(record.owner)
        is_restarted = member is not None and member.instance != record.instance
        death = self.roster.death_of(record)
        if death is not None:
            cause = Cause.RESTARTED if is_restarted else death.cause
            return cause, context.wall_at(death.heard_at)
        if is_restarted:
            return Cause.RESTARTED, 0
        if member is None:
            return self.roster.why_gone(record.owner), 0
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
        if not self._has_read_since(LEADER_KEY, partition):
            return
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
        if self.roster.members[record.owner].is_leaving:
            return Cause.LEFT
        if record.owner in book.control.draining:
            return Cause.DRAINED
        if book.control.pins.get(partition) == self._target.get(partition, ""):
            return Cause.MOVED
        return self._cause

    # ---- records that are missing, or are of another number of partitions ----

    def _drop(self, partition: int, record: PartitionRecord | None) -> None:
        """Delete the record of a partition that is no more."""
        if record is None:
            return
        is_over = record.epoch <= self.context.config.base_epoch
        if is_over or self._has_read_since(CONFIG_KEY, partition):
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
        revision = context.book.revision(partition_key(partition))
        if not revision:
            # "Not there" holds in a bucket made since as well, where this leader's epochs may have
            # been given already. A place does no harm there, and ``cfg`` is read after it.
            self._run(partition, _no_result(context, partition, PLACE, 0))
            return
        if not self._has_read_since(CONFIG_KEY, partition):
            return
        there = context.book.partitions.get(partition)
        record = self._barrier.first_record(partition)
        if record is None or not self._barrier.is_sure(partition):
            if not self._survey.is_done(partition):
                self._look_up(("lead", "survey"), self._survey.run())
                return
            found = self._survey.first_record(partition)
            if record is None or self._survey.knows(partition):
                record = found
            record = replace(record, epoch=max(record.epoch, found.epoch))
        state = PartitionState.FREE if target is None else PartitionState.OWNED
        epoch = max(record.epoch, there.epoch + 1 if there is not None else 0)
        new = replace(record, epoch=epoch, owner=target, instance=instance, state=state)
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
        if (yield from claim(self.context)):
            self._read_at[LEADER_KEY] = self.context.book.revision(LEADER_KEY)
        else:
            yield from self.context.refresh_key(LEADER_KEY)


def _no_result(context: Context, partition: int, record: PartitionRecord, revision: int) -> Script:
    yield from write_partition(context, partition, record, revision)
