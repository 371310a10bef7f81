"""Who is in the group, as its leader believes: members, deaths, graces, and why somebody is gone.

The bucket's ``members.<id>`` say who is a member, the `Detector` says who is dead. Between the two:

* a **dead** member's record is deleted, at once, or after ``static_grace_s`` if its name is static:
  until then its name keeps what it has;
* a record that is **gone while its process is heard** says nothing about the process: a server that
  could not be written to for a while drops what was not renewed. The member counts as there until
  the detector has a verdict on it; it writes its record anew as soon as it can;
* a member that is **away** (its process ended in order, its name is static) is as good as dead, but
  nobody says so;
* **another process under the same name** ends the one before, dead or not.

What follows from a change (a plan, now or soon, and for which cause) is told to the leader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..events import Cause, GroupEvent, Joined, Left, MemberDead
from ..model import ControlRecord, MemberRecord, PartitionRecord
from ..naming import CONTROL_KEY, member_key
from .assign import Candidate
from .context import Context
from .detector import Detector, Verdict
from .handoff import RETRY_S
from .steps import Pause, Script

Plan = Callable[[Cause], None]

_CAUSES = {"no responders": Cause.NO_RESPONDERS, "silent": Cause.MISSED_HEARTBEATS}


@dataclass(frozen=True, slots=True)
class Death:
    """The end of one process, as far as anybody can know."""

    instance: str
    at: float
    cause: Cause
    heard_at: float


class Roster:
    """The members as the leader sees them."""

    def __init__(
        self, context: Context, *, keep: Callable[[GroupEvent], None], now: Plan, soon: Plan
    ) -> None:
        """``keep`` takes events of the group; ``now`` and ``soon`` ask for another plan."""
        self._context = context
        self._keep, self._plan_now, self._plan_soon = keep, now, soon
        self.detector = Detector(context.settings.timing)
        self.members = dict(context.book.members)
        """Everybody, also those whose records are gone while they are heard."""
        self._deaths: dict[str, Death] = {}
        self._graces: dict[str, float] = {}
        """Dead member → when its grace ends, if its name is static."""
        self._gone: dict[str, Cause] = {}
        """Members that are no members any more, and why."""
        for member, record in self.members.items():
            if record.is_away:
                self._note_away(member, record)
        self.watch()
        self.detector.suspect_all(context.now)

    # ---- happenings ----

    def update(self) -> None:
        """Compare with the bucket's members."""
        book = self._context.book
        before = self.members
        self.members = dict(book.members)
        for member, record in book.members.items():
            old = before.get(member)
            if old is None:
                self._gone.pop(member, None)
                self._keep(Joined(member=member))
                self._plan_soon(Cause.JOINED)
            elif old.instance != record.instance:
                self._note_restart(member, old.instance)
            elif record.is_leaving and not old.is_leaving:
                self._plan_soon(Cause.LEFT)
            elif record.is_away and not old.is_away:
                self._note_away(member, record)
            elif old != record:
                self._plan_now(Cause.REBALANCED)
        for member, record in before.items():
            if member not in book.members:
                if self._is_heard(member, record):
                    self.members[member] = record
                else:
                    self._on_gone(member, record)
        self.watch()

    def heard(self, member: str, instance: str, deaf_s: float) -> None:
        """Note a heartbeat; one of a member thought dead brings it back, if it is a member."""
        self.detector.heard(member, instance, self._context.now, deaf_s)
        death = self._deaths.get(member)
        record = self.members.get(member)
        if record is None or record.is_away or self.detector.is_deaf(deaf_s):
            return
        if death is not None and death.instance == instance:
            del self._deaths[member]
            self._plan_now(Cause.JOINED)

    def bring_out(self, verdict: Verdict) -> None:
        """A member is dead."""
        now = self._context.now
        cause = _CAUSES.get(verdict.reason, Cause.MISSED_HEARTBEATS)
        self._note_end(verdict.member, Death(verdict.instance, now, cause, verdict.heard_at))
        self.watch()
        event = MemberDead(member=verdict.member, reason=verdict.reason)
        self._context.tell(event)
        self._keep(event)
        if verdict.member not in self._context.book.members:
            record = self.members.pop(verdict.member, None)
            if record is not None:
                self._on_gone(verdict.member, record)
        self._plan_now(cause)

    def tick(self) -> None:
        """End the graces whose time has come."""
        for member, ends_at in list(self._graces.items()):
            if self._context.now >= ends_at:
                del self._graces[member]
                self._plan_now(self.why_gone(member))

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return min(self._graces.values(), default=float("inf"))

    def _is_heard(self, member: str, record: MemberRecord) -> bool:
        """Whether a member whose record is gone is there all the same."""
        context = self._context
        if record.is_leaving or self.is_dead(member, record) or member == context.settings.member:
            return False
        silence_s = context.now - self.detector.heard_at(member, float("-inf"))
        return silence_s < context.settings.timing.heartbeat_timeout_s

    def _on_gone(self, member: str, record: MemberRecord) -> None:
        death = self._deaths.get(member)
        if death is not None and death.instance == record.instance:
            self._gone[member] = death.cause
        else:
            self._gone[member] = Cause.LEFT if record.is_leaving else Cause.MISSED_HEARTBEATS
            self._keep(Left(member=member))
        if not record.is_static:
            self._forget_wishes(member)
        is_owner = any(member == part.owner for part in self._context.book.partitions.values())
        (self._plan_now if is_owner else self._plan_soon)(self._gone[member])

    def _note_restart(self, member: str, instance: str) -> None:
        """Another process has the name: the one before is over, dead or not."""
        death = self._deaths.get(member)
        if death is None or death.instance != instance:
            now = self._context.now
            heard_at = self.detector.heard_at(member, now)
            self._deaths[member] = Death(instance, now, Cause.RESTARTED, heard_at)
        self._plan_now(Cause.RESTARTED)

    def _note_away(self, member: str, record: MemberRecord) -> None:
        now = self._context.now
        self._note_end(member, Death(record.instance, now, Cause.LEFT, now))
        self._keep(Left(member=member))

    def _note_end(self, member: str, death: Death) -> None:
        self._deaths[member] = death
        grace_s = self._context.settings.timing.static_grace_s
        if grace_s:
            self._graces[member] = death.at + grace_s

    # ---- for a plan ----

    def look(self) -> list[Candidate]:
        """Forget deaths of processes nothing names, watch the rest; return who may own something.

        The dead whose time is over are buried on the way: their records are deleted.
        """
        book = self._context.book
        named = {record.instance for record in book.partitions.values()}
        named |= {record.instance for record in self.members.values()}
        self._deaths = {
            member: death for member, death in self._deaths.items() if death.instance in named
        }
        self.watch()
        candidates = []
        for member, record in self.members.items():
            if self.is_over(member, record):
                self._bury(member)
                continue
            is_full = record.is_leaving or member in book.control.draining
            capacity = 0 if is_full else record.capacity
            candidates.append(Candidate(member=member, capacity=capacity, labels=record.labels))
        return candidates

    def watch(self) -> None:
        """Watch everybody who is not dead."""
        me = self._context.settings.member
        self.detector.watch(
            {
                member: record.instance
                for member, record in self.members.items()
                if member != me and not self.is_dead(member, record)
            },
            self._context.now,
        )

    def is_dead(self, member: str, record: MemberRecord) -> bool:
        """Whether this process of the member is."""
        death = self._deaths.get(member)
        return death is not None and death.instance == record.instance

    def is_over(self, member: str, record: MemberRecord) -> bool:
        """Whether a member is dead and, if its name is static, its grace is over too."""
        if not self.is_dead(member, record):
            return False
        if not record.is_static:
            return True
        since = self._deaths[member].at
        return self._context.now >= since + self._context.settings.timing.static_grace_s

    def death_of(self, record: PartitionRecord) -> Death | None:
        """Return the end of the process that owns a partition, if there was one."""
        death = self._deaths.get(record.owner or "")
        return death if death is not None and death.instance == record.instance else None

    def why_gone(self, member: str) -> Cause:
        """Why somebody is no member any more."""
        return self._gone.get(member, Cause.MISSED_HEARTBEATS)

    # ---- those that are gone ----

    def _bury(self, member: str) -> None:
        key = ("lead", "bury", member)
        if key not in self._context.steps:
            self._context.steps.start(key, self._bury_script(member), self._context.now)

    def _bury_script(self, member: str) -> Script:
        if not (yield from self._context.delete(member_key(member))):
            yield Pause(RETRY_S)
            self._plan_now(self.why_gone(member))

    def _forget_wishes(self, member: str) -> None:
        control = self._context.book.control
        if _without(control, member) != control:
            key = ("lead", "forget", member)
            self._context.steps.start(key, self._forget_script(member), self._context.now)

    def _forget_script(self, member: str) -> Script:
        """Take a member that is gone for good out of ``ctl``: its name never comes again."""
        context = self._context
        while (control := _without(context.book.control, member)) != context.book.control:
            if member in context.book.members:
                return
            if not (yield from context.write(CONTROL_KEY, control)):
                yield Pause(RETRY_S)


def _without(control: ControlRecord, member: str) -> ControlRecord:
    return replace(
        control,
        pins={number: name for number, name in control.pins.items() if name != member},
        draining=tuple(name for name in control.draining if name != member),
    )
